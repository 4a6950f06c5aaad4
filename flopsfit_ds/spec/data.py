"""The `data` section of a spec: what a sweep trains on, by kinds of sources."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from flopsfit_ds.spec.quantities import Count, Name, Quantity
from flopsfit_ds.spec.section import Section

LEAST_WEIGHT = 1e-9
"""One sample in a thousand million; products of two such whole numbers fit into 64 bits."""
_WEIGHTS_OFF = 1e-6  # thirds written with six digits, .333333 three times, pass


class StdlibData(Section):
    """The bytes of the Python standard library's own source: a real corpus on every machine."""

    source: Literal["python-stdlib"] = "python-stdlib"
    heldout_tokens: Count = 65536
    """Tokens kept out of training; the loss of a point is measured on all of them."""


class TextData(Section):
    """Text files of the user's, as bytes or through a `tokenizer.json`."""

    source: Literal["text"]
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    """Files, folders (every file below) or glob patterns, relative to the spec."""
    tokenizer: str | None = None
    """A Hugging Face `tokenizer.json`, relative to the spec; without it a token is a byte.

    Truncation and padding that it asks for are switched off; special tokens that it adds to each text are kept.
    """
    heldout_tokens: Count = 65536
    """Tokens kept out of training; the loss of a point is measured on all of them."""


class TokenData(Section):
    """Token ids in a memory-mapped file: `.npy`, Megatron's `.bin` and `.idx`, llm.c's, or bare little-endian integers.

    A file that says its type is taken at its word; of a bare one it is found by evidence, or has to be given.
    """

    source: Literal["tokens"]
    path: str
    """The file, relative to the spec."""
    dtype: Literal["uint8", "uint16", "int16", "uint32", "int32", "int64"] | None = None
    """Type of the ids; without it, what the file says or shows. One that contradicts the file is refused."""
    num_tokens: Count | None = None
    """Ids in the file; with it, a sweep can be planned before the file exists."""
    heldout_tokens: Count = 65536
    """Tokens at the end of the file kept out of training; the loss of a point is measured on all of them."""


class DatasetData(Section):
    """A dataset handed to `find_optimal`; it cannot be named in a file."""

    source: Literal["dataset"]
    fingerprint: str
    """Hash of the dataset's length and of some samples."""
    num_samples: Count
    """Samples, held-out ones included."""
    heldout_tokens: Count
    """Predictions the loss of a point is measured on."""


class _Documents(Section):
    """A source of documents: text, or token ids."""

    column: str = "text"
    """Column that holds a document: text, or a list of token ids; which of the two, the data says."""
    tokenizer: str | None = None
    """A Hugging Face `tokenizer.json` for text, relative to the spec; without it a token is a byte."""
    end_of_document: str | Annotated[int, Field(ge=0)] | None = None
    """What is written after each document: a token of the tokenizer, or an id. Without it, nothing is."""
    heldout_tokens: Count = 65536
    """Tokens of the last documents kept out of training; the loss of a point is measured on all of them."""


class FilesData(_Documents):
    """Documents in files: a JSON object a line, Parquet, or WebDataset's archives.

    Of an archive a column is an extension (`txt`), or an entry of its JSON members (`json.text`).
    """

    source: Literal["jsonl", "parquet", "webdataset"]
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    """Files, folders (every file below) or glob patterns, relative to the spec."""


class FolderData(_Documents):
    """Documents in a folder of chunks with an `index.json`: MosaicML's `streaming` (MDS), or litdata's `optimize`.

    Every document of every chunk is read. Of litdata's items that are no dictionaries, the column is not looked at.
    """

    source: Literal["mds", "litdata"]
    path: str
    """The folder, relative to the spec."""


class HfData(_Documents):
    """A dataset of the Hugging Face library, as `save_to_disk` wrote it."""

    source: Literal["hf"]
    path: str
    """Folder of the dataset, relative to the spec."""
    split: str | None = None
    """Of several splits, the one to take."""


class MegatronData(Section):
    """Token ids as Megatron keeps them: `.bin`, and an `.idx` beside it that says where documents end."""

    source: Literal["megatron"]
    path: str
    """The `.bin`, or what `.bin` and `.idx` are put behind, relative to the spec."""
    heldout_tokens: Count = 65536
    """Tokens at the end kept out of training; the loss of a point is measured on all of them."""


class LlmcData(Section):
    """Token ids as llm.c keeps them, in as many files as there are."""

    source: Literal["llm.c"]
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    """Files, folders or glob patterns, relative to the spec; their ids follow each other by the files' names."""
    heldout_tokens: Count = 65536
    """Tokens at the end kept out of training; the loss of a point is measured on all of them."""


FileSource = StdlibData | TextData | TokenData | FilesData | FolderData | HfData | MegatronData | LlmcData


class MixtureData(Section):
    """Several sources, each a share of every run's tokens.

    Which source a sample is of, and which of its samples, is a function of seed and step alone.
    """

    source: Literal["mixture"]
    sources: dict[Name, Annotated[FileSource, Field(discriminator="source")]]
    """What is mixed, by names of your own; each holds out its own last `heldout_tokens`."""
    weights: dict[Name, Quantity]
    """Share of each source among the tokens of a run, and in its held-out loss; they add up to 1."""

    @model_validator(mode="after")
    def _add_up(self) -> MixtureData:
        if len(self.sources) < 2:
            raise ValueError("a mixture takes two sources or more; write a single one as the data section itself")
        if set(self.weights) != set(self.sources):
            raise ValueError(
                f"weights names {', '.join(self.weights) or 'nothing'}, and sources {', '.join(self.sources)}; write "
                "one weight for each source"
            )
        total = math.fsum(self.weights.values())
        if abs(total - 1) > _WEIGHTS_OFF:
            shown = " + ".join(f"{self.weights[name]:g}" for name in self.sources)
            scaled = ", ".join(f"{name}: {self.weights[name] / total:.6g}" for name in self.sources)
            raise ValueError(f"weights add up to {shown} = {total:.6g}, not to 1; in this proportion: {scaled}")
        least = min(self.weights, key=self.weights.__getitem__)
        if self.weights[least] < LEAST_WEIGHT:
            raise ValueError(
                f"weights.{least}: {self.weights[least]:g} is less than {LEAST_WEIGHT:g}, the least share that is "
                "drawn; leave that source out"
            )
        return self


AnyData = FileSource | DatasetData | MixtureData
