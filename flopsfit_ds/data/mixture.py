"""Several sources as one corpus: each a share of every run's tokens."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping

from flopsfit_ds.base.errors import DataError
from flopsfit_ds.data.checks import other_ids, shared_file
from flopsfit_ds.data.corpus import ABSENT, Corpus, MixedSource
from flopsfit_ds.spec.data import LEAST_WEIGHT


def mix(found: Mapping[str, Corpus], weights: Mapping[str, float]) -> Corpus:
    """Make one corpus of several.

    Args:
        found: The sources by name.
        weights: Of each source, its share of the tokens.

    Raises:
        DataError: Two of them hold the same file or the same content, or their ids are of different tokenizers.
    """
    for (one, first), (other, second) in itertools.combinations(found.items(), 2):
        _check_pair(one, first, other, second)
    wholes = whole_weights([weights[name] for name in found])
    mixed = tuple(
        MixedSource(name, weight, corpus) for (name, corpus), weight in zip(found.items(), wholes, strict=True)
    )
    corpora = list(found.values())
    counts = [corpus.num_tokens for corpus in corpora]
    known = [count for count in counts if count is not None]
    shares = ", ".join(f"{source.name} {source.weight / sum(wholes):.4g}" for source in mixed)
    absent = any(corpus.fingerprint == ABSENT for corpus in corpora)
    bytes_alone = all(corpus.tokenizer is None and corpus.dtype == "uint8" for corpus in corpora)
    digest = hashlib.sha256(json.dumps([corpus.fingerprint for corpus in corpora]).encode())
    return Corpus(
        source="mixture",
        files=tuple(name for corpus in corpora for name in corpus.files),
        fingerprint=ABSENT if absent else digest.hexdigest()[:16],
        num_tokens=sum(known) if len(known) == len(counts) else None,
        num_bytes=sum(corpus.num_bytes for corpus in corpora),
        heldout_tokens=sum(corpus.heldout_tokens for corpus in corpora),
        dtype="uint8" if bytes_alone else "uint32",
        tokenizer=next((corpus.tokenizer for corpus in corpora if corpus.tokenizer is not None), None),
        notes=(
            f"shares of the tokens, and of the held-out loss: {shares}",
            *(f"{source.name}: {note}" for source in mixed for note in source.corpus.notes),
        ),
        mixed=mixed,
    )


def whole_weights(weights: list[float]) -> list[int]:
    """Weights as whole numbers without a common divisor: .7 and .3 are 7 and 3."""
    wholes = [round(weight / LEAST_WEIGHT) for weight in weights]
    divisor = math.gcd(*wholes)
    return [whole // divisor for whole in wholes]


def _check_pair(one: str, first: Corpus, other: str, second: Corpus) -> None:
    """See that two sources have nothing in common but their ids.

    Raises:
        DataError: They have, or not even those.
    """
    shared = shared_file(first, second)
    if shared is not None:
        raise DataError(f"data.sources: {one} and {other} both hold {shared}; name it in one of the two")
    if first.fingerprint == second.fingerprint != ABSENT:
        raise DataError(f"data.sources: {one} and {other} hold the same content; leave one of the two out")
    words = other_ids(first, second)
    if words is not None:
        raise DataError(
            f"data.sources: the ids of {one} are {words[0]}, and those of {other} are {words[1]}; use the same for both"
        )
