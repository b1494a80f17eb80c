from exitlens.types.comparisons import PLAIN, Comparison, Contender


def compare(*others):
    ours = Contender("exits", "network with exits", 0.9, (0.0, 0.0, 0.0), 2.0, (1.0, 1.0, 1.0), 0.95, 0.7)
    return Comparison((ours, *others), 1000, None, 32, {}, "net", "rule")


def rival(gain, ratio, name="cut", accuracy=0.9):
    return Contender(name, f"{name} backbone", accuracy, gain, 2.0 * ratio[0], ratio)


PLAINER = rival((1.0, 0.5, 1.5), (3.0, 2.9, 3.1), PLAIN, 0.91)
LONGER = "The plain backbone has +1.0 points (+0.5 to +1.5) in 3.00 times the time."


def test_the_sentence_says_which_to_take():
    worse = compare(PLAINER, rival((-2.0, -3.0, -1.0), (1.0, 0.9, 1.1), accuracy=0.88)).advice
    assert worse == (
        "Take the network with exits: at 2 ms it is 2.0 points (1.0 to 3.0) more accurate than the cut backbone, the best of "
        f"those that may take no longer. {LONGER}"
    )
    better = compare(PLAINER, rival((2.0, 1.0, 3.0), (0.5, 0.4, 0.6), accuracy=0.92)).advice
    assert better.startswith("Take the cut backbone: at 1 ms against 2 it is 2.0 points (1.0 to 3.0) more accurate")
    even = compare(rival((0.2, -1.0, 1.4), (0.5, 0.4, 0.6))).advice
    assert even == (
        "Undecided between the network with exits and the cut backbone, which takes 0.50 times as long: its accuracy differs by "
        "+0.2 points (-1.0 to +1.4)."
    )
    alone = "Take the network with exits if it is accurate enough: nothing else that was tried is as fast."
    assert compare(PLAINER, rival((0.5, 0.0, 1.0), (2.0, 1.9, 2.1), accuracy=0.905)).advice == f"{alone} {LONGER}"


def test_a_rival_whose_time_may_be_the_same_counts():
    slower = rival((2.0, 1.0, 3.0), (1.2, 1.0, 1.4), accuracy=0.92)
    assert compare(slower).advice.startswith("Take the cut backbone")
    assert compare(rival((2.0, 1.0, 3.0), (1.2, 1.1, 1.4))).advice.startswith("Take the network with exits if")


def test_rows():
    head, ours, other = compare(rival((2.0, 1.0, 3.0), (1.2, 1.0, 1.4))).tabulate()
    assert ours == ["network with exits", "90.0", "", "2", "1", "95.0", "70.0"]
    assert other == ["cut backbone", "90.0", "+2.0 (+1.0 to +3.0)", "2.4", "1.20 (1.00 to 1.40)", "", ""]
    assert len(head) == len(ours)
