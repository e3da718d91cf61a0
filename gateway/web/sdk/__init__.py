"""SDK: the URLs of three providers, for their own SDKs; each answers as that provider would."""
