"""Made sentences, good or bad."""

from benchmarks.reviews import Sentence


def make_sentences(count: int) -> list[Sentence]:
    """Half of them good, with a word of the lexicon ``good, bad`` in each."""
    topics = ("film", "book", "song")
    return [
        Sentence(f"the {topics[i % 3]} number {i} is {('good', 'bad')[i % 2]}", ("positive", "negative")[i % 2])
        for i in range(count)
    ]
