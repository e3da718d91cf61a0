"""Make a tiny Llama of random weights in a folder, its words from standard input.

`python tiny_llama.py FOLDER`, with transformers and torch at hand: nothing is asked of any hub.
"""

import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BREAKS = "<breaks>"  # A token that the model has no place for: what is asked with it breaks.
_SAID = "{{ message.role }}: {{ message.content }}\n"
TEMPLATE = f"{{% for message in messages %}}{_SAID}{{% endfor %}}assistant: "


def tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose words are of this text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=letters, special_tokens=["<s>"])
    made.train_from_iterator([text], trainer)
    made.add_special_tokens([BREAKS])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="<s>")
    wrapped.chat_template = TEMPLATE
    return wrapped


def model(words: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a model that says any of these words but the last, the same to the same prompt."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words) - 1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=4096,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=0,
    )
    made = LlamaForCausalLM(config)
    made.generation_config = GenerationConfig(
        do_sample=False,
        no_repeat_ngram_size=2,  # Else it would say the same for ever.
        min_new_tokens=300,  # A second, in which a viewer can leave and come back.
        bos_token_id=0,
        eos_token_id=0,
    )
    return made


def main() -> None:
    """Make both."""
    words = tokenizer(sys.stdin.read())
    words.save_pretrained(sys.argv[1])
    model(words).save_pretrained(sys.argv[1])


if __name__ == "__main__":
    main()
