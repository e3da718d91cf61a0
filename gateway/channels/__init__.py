"""The channels of users: messages that an app pushes to those who have a page open, or will."""
