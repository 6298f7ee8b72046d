"""The strangers, by what they are for."""

from benchmarks.zoo.strangers.generators import GENERATORS
from benchmarks.zoo.strangers.images import IMAGES
from benchmarks.zoo.strangers.language import LANGUAGE
from benchmarks.zoo.strangers.long_texts import LONG_TEXTS
from benchmarks.zoo.strangers.parts import PARTS
from benchmarks.zoo.strangers.pictures import PICTURES
from benchmarks.zoo.strangers.science import SCIENCE
from benchmarks.zoo.strangers.sound import SOUND
from benchmarks.zoo.strangers.tables import TABLES

STRANGERS = (*LANGUAGE, *LONG_TEXTS, *IMAGES, *PARTS, *PICTURES, *GENERATORS, *SOUND, *SCIENCE, *TABLES)

__all__ = ["STRANGERS"]
