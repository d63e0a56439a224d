from autopeft.searchers.registry import make_searcher
from autopeft.study.records import Origin


def test_children_are_one_mutation_from_the_front(make_problem, observe) -> None:
    problem = make_problem(initial=3)
    searcher = make_searcher("evolution", problem)
    start = searcher.ask(3)
    assert {each.origin for each in start} == {Origin.INITIAL}
    observations = [observe(i, p.configuration, accuracy=0.3) for i, p in enumerate(start)]
    best = observe(3, make_searcher("random", make_problem(seed=5)).ask(1)[0].configuration)
    searcher.tell([*observations, observe(3, best.configuration, accuracy=0.99)])
    children = searcher.ask(6)
    assert {child.details["reason"] for child in children} == {"mutation"}
    parents = {child.details["parent"] for child in children}
    assert 3 in parents
    for child in children:
        if child.details["parent"] == 3:
            ours, theirs = child.configuration, best.configuration
            changes = [
                ours.training != theirs.training,
                ours.layers != theirs.layers,
                [(g.method, g.sites, g.settings) for g in ours.groups]
                != [(g.method, g.sites, g.settings) for g in theirs.groups],
            ]
            assert sum(changes) == 1


def test_failed_trials_have_no_children(make_problem, observe) -> None:
    searcher = make_searcher("evolution", make_problem(initial=2))
    start = searcher.ask(2)
    searcher.tell([observe(i, p.configuration, failed=True) for i, p in enumerate(start)])
    assert {child.details["reason"] for child in searcher.ask(2)} == {"nothing measured yet"}
