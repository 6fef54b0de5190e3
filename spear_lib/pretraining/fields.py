"""The token fields that a model predicts: what they are, and that all data agree on it."""

from dataclasses import dataclass
from typing import Any

from spear_lib.pretraining.data import PretrainingData


@dataclass(frozen=True)
class TokenField:
    """What is known about the tokens of one custom field of the cuts (from the token store's metadata)."""

    name: str
    num_codebooks: int
    codebook_size: int
    frame_rate: float
    first_frame_center_ms: float
    quantizer_id: str
    teacher_id: str

    @classmethod
    def from_facts(cls, name: str, facts: dict[str, Any]) -> "TokenField":
        """The field ``name`` of a token store with these ``facts`` (its store.json)."""
        try:
            return cls(
                name=name,
                num_codebooks=int(facts["num_codebooks"]),
                codebook_size=int(facts["codebook_size"]),
                frame_rate=float(facts["frame_rate"]),
                first_frame_center_ms=float(facts["first_frame_center_ms"]),
                quantizer_id=str(facts["quantizer_id"]),
                teacher_id=str(facts["teacher_id"]),
            )
        except KeyError as error:
            raise ValueError(
                f"the store of the tokens {name!r} does not say {error}: its store.json is missing or moved. "
                "Put the store back where the cuts point, or attach the tokens again (stage 6)"
            ) from error


def token_fields(train: PretrainingData, valid: dict[str, PretrainingData]) -> list[TokenField]:
    """What the manifests and token stores of the cuts say about each field, in the order of the options.

    Args:
      train: training data.
      valid: validation set name -> data; a set may hold cuts of one domain only.

    Raises:
      ValueError: no training cut needs a field, or a validation set has tokens of another quantiser.
    """
    for domain, names in train.needed_fields.items():
        for name in names:
            if name not in train.token_facts:
                raise ValueError(
                    f"the training cuts hold no {domain} cuts, so nothing is trained on the tokens "
                    f"{name!r}: add their manifests to data.train_cuts (a cut is speech unless its custom "
                    "field domain is audio), or use objective.strategy single"
                )
    fields = {
        name: TokenField.from_facts(name, train.token_facts[name]) for name in train.config.token_fields
    }
    for set_name, data in valid.items():
        for name, facts in data.token_facts.items():
            found = TokenField.from_facts(name, facts)
            if found != fields[name]:
                raise ValueError(
                    f"the tokens of validation set {set_name} are {found}, those of the training cuts are "
                    f"{fields[name]}: attach tokens of the same quantiser to both"
                )
    return list(fields.values())
