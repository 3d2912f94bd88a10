from tests.toy import make_model, model, small_base, thinking, tokenizer

__all__ = ["make_model", "model", "small_base", "thinking", "tokenizer"]
