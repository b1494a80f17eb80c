"""Labelled texts in memory, the files they come from, and a word tokenizer made from texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from exitlens.data.lines import read_file
from exitlens.data.readers import PackedStrings, pack_strings
from exitlens.data.rows import Columns, check_rows, number_labels
from exitlens.data.sets import SampleSet
from exitlens.errors import InputError, import_extra, require
from exitlens.types.preprocessing import TextPreprocess

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
ENCODED_AT_ONCE = 1024  # texts; the tokenizer's own record of each takes kilobytes


class TextSet(SampleSet):
    """Texts and their tokens in memory, packed; item ``i`` is ``({"input_ids": (L,), "attention_mask": (L,)}, label)``.

    Args:
        texts: N texts.
        labels: ``(N,)`` ``int64``; several labels a sample ``(N,C)`` of 0 and 1.
        classes: class names, in label order.
        preprocess: how texts become token ids; L is its ``length``.
        masks: optional ``(N,L)`` ``bool``: which tokens carry the answer.
        groups: optional ``(N,)`` ``int64``: texts with the same number belong together.

    Examples:
        >>> texts = ["a good lamp", "a bad lamp"]
        >>> preprocess = xl.data.TextPreprocess(xl.data.word_tokenizer(texts), length=6)
        >>> data = xl.data.TextSet(texts, torch.tensor([1, 0]), ("bad", "good"), preprocess)
        >>> data[0][0]["input_ids"].shape, data.texts[0]
        (torch.Size([6]), 'a good lamp')
    """

    by_sample = (*SampleSet.by_sample, "texts", "_starts", "_counts")

    def __init__(
        self,
        texts: Sequence[str],
        labels: Tensor,
        classes: tuple[str, ...],
        preprocess: TextPreprocess,
        masks: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> None:
        require(preprocess, TextPreprocess, "preprocess")
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise InputError(f"texts: expected a list of one text or more, got {texts!r:.60}")
        for i, text in enumerate(() if isinstance(texts, PackedStrings) else texts):
            require(text, str, f"texts[{i}]")
        self.texts, self.preprocess = pack_strings(texts), preprocess
        self._encode()
        self.set_labels((len(texts), preprocess.length), labels, classes, groups, masks)

    def _encode(self) -> None:
        """Keep the token ids of all texts in a row without their padding, which takes four bytes for each token."""
        pieces, counts, self._padding = list[Tensor](), list[Tensor](), 0
        for at in range(0, max(len(self.texts), 1), ENCODED_AT_ONCE):
            encoded = self.preprocess.encode(self.texts[at : at + ENCODED_AT_ONCE])
            ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()  # (n,L), padded at the end
            pieces.append(ids[mask].int())
            counts.append(mask.sum(1))
            if not mask.all():
                self._padding = int(ids[~mask][0])
        self._ids, self._counts = torch.cat(pieces), torch.cat(counts)  # (T,), (N,)
        self._starts = self._counts.cumsum(0) - self._counts  # (N,)

    def _take(self, indices: Tensor | slice) -> dict[str, Tensor]:  # (n,) integers
        """Return ``input_ids`` and ``attention_mask`` ``(n,L)`` ``int64``, as :meth:`TextPreprocess.encode` does."""
        starts, counts = self._starts[indices], self._counts[indices]
        places = torch.arange(self.preprocess.length)
        mask = places < counts[:, None]  # (n,L)
        ids = torch.full(mask.shape, self._padding)
        ids[mask] = self._ids[(starts[:, None] + places)[mask]].long()
        return {"input_ids": ids, "attention_mask": mask.long()}

    @property
    def inputs(self) -> dict[str, Tensor]:
        """All texts as network input, made anew at each call.

        ``input_ids`` ``(N,L)`` are padded at the end; ``attention_mask`` ``(N,L)`` is 1 for a token and 0 for padding.
        """
        return self._take(slice(None))

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[dict[str, Tensor], Tensor]]:
        rows = torch.tensor(indices, dtype=torch.int64)
        tokens = self._take(rows)
        inputs = [dict(zip(tokens, row, strict=True)) for row in zip(*tokens.values(), strict=True)]
        return list(zip(inputs, self.labels[rows], strict=True))


class RawTexts(SampleSet):
    """Labelled texts that no tokenizer has encoded yet: one split has to make it."""

    by_sample = (*SampleSet.by_sample, "texts")

    def __init__(self, texts: Sequence[str], labels: Tensor, classes: tuple[str, ...], groups: Tensor | None = None) -> None:
        self.texts, self.labels, self.classes, self.groups = pack_strings(texts), labels, classes, groups

    def encode(self, preprocess: TextPreprocess) -> TextSet:
        """Return them as a set that a network reads."""
        return TextSet(self.texts, self.labels, self.classes, preprocess, groups=self.groups)


def word_tokenizer(texts: Iterable[str], max_words: int = 20000) -> str:
    """Make a tokenizer of lower-case words and punctuation marks, which frames each text by ``[CLS]`` and ``[SEP]``.

    Only the ``max_words`` most frequent words are known (ties: alphabetical); others become ``[UNK]``. The result is JSON,
    for :class:`TextPreprocess`.

    Examples:
        >>> preprocess = xl.data.TextPreprocess(xl.data.word_tokenizer(["a good lamp", "a bad lamp"]), length=6)
        >>> preprocess.encode(["a good lamp"])["attention_mask"]  # [CLS] a good lamp [SEP], and one of padding
        tensor([[1, 1, 1, 1, 1, 0]])
    """
    if isinstance(texts, str) or max_words < 1:
        raise InputError(f"texts, max_words: expected several texts and 1 word or more, got {texts!r:.60} and {max_words}")
    package = import_extra("tokenizers", "hf", "text input")
    normalizer = package.normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    splitter = package.pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        require(text, str, "texts")
        try:
            counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
        except UnicodeEncodeError as error:
            raise InputError(f"texts: expected valid Unicode, got {text!r:.60} ({error})") from error
    if not counts:
        raise InputError("texts: expected at least one word, got none")
    words = sorted(counts, key=lambda word: (-counts[word], word))[:max_words]
    vocabulary = {word: i for i, word in enumerate((*SPECIAL_TOKENS, *words))}
    tokenizer = package.Tokenizer(package.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    frame = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = package.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    return str(tokenizer.to_str())


def read_texts(
    path: Path | str, classes: Sequence[str] = (), *, skip_bad: bool = False
) -> tuple[list[str], Tensor, tuple[str, ...]]:
    """Read texts, labels ``(N,)`` and class names from the columns text and label of a UTF-8 file (``.csv`` or ``.jsonl``).

    Args:
        path: the file; other columns or keys are not read.
        classes: the names to use, in label order; by default those in the file, sorted (numbers by their value).
        skip_bad: leave out rows that cannot be read, instead of stopping with all of them.

    Examples:
        >>> _ = Path("reviews.csv").write_text("text,label\\ngood lamp,positive\\nbad lamp,negative\\n")
        >>> texts, labels, classes = xl.data.read_texts("reviews.csv")
        >>> texts[0], labels, classes
        ('good lamp', tensor([1, 0]), ('negative', 'positive'))
    """
    rows = read_file(Path(path), Columns("text", ("text",), ("label",)))
    good = check_rows({"": rows}, skip_bad)[0][""]
    texts, labels = rows.texts or (), rows.labels or ()
    return [texts[i] or "" for i in good], *number_labels([labels[i] or "" for i in good], classes, str(path))
