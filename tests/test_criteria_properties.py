"""Generated criteria select the same rows before and after the wire."""

from __future__ import annotations

from datetime import date

import pytest
from sqlalchemy import and_, not_, or_
from support import User
from test_criteria import same, session  # noqa: F401

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

NUMBERS = st.sampled_from([-3, -1, 0, 1, 2, 36, 0.5])
TEXTS = st.sampled_from(["", "a", "A", "ada", "%", "_", "a%b", "/", "Bob", "'"])
NUMERIC = st.recursive(
    st.sampled_from([User.age, User.id, User.score]),
    lambda inner: (
        st.builds(lambda a, b: a + b, inner, inner | NUMBERS)
        | st.builds(lambda a, b: a - b, inner, inner | NUMBERS)
        | st.builds(lambda a, b: a * b, inner, inner | NUMBERS)
        | st.builds(lambda a, b: b - a, inner, NUMBERS)
        | st.builds(lambda a, b: a / b, inner, st.sampled_from([2, 3.0]))
        | st.builds(lambda a: -a, inner)
    ),
    max_leaves=3,
)
COMPARE = st.sampled_from(
    [
        lambda a, b: a == b,
        lambda a, b: a != b,
        lambda a, b: a < b,
        lambda a, b: a <= b,
        lambda a, b: a > b,
        lambda a, b: a >= b,
        lambda a, b: a.is_distinct_from(b),
        lambda a, b: a.is_not_distinct_from(b),
    ]
)
MATCH = st.sampled_from(
    [
        lambda a, b: a == b,
        lambda a, b: a.like(b),
        lambda a, b: a.not_like(b, escape="/"),
        lambda a, b: a.ilike(b),
        lambda a, b: a.contains(b, autoescape=True),
        lambda a, b: a.startswith(b),
        lambda a, b: a.endswith(b, autoescape=True),
        lambda a, b: a + b > "a",
        lambda a, b: ~a.contains(b),
    ]
)
LEAVES = (
    st.builds(lambda f, a, b: f(a, b), COMPARE, NUMERIC, NUMERIC | NUMBERS)
    | st.builds(lambda f, b: f(User.name, b), MATCH, TEXTS)
    | st.builds(lambda f, b: f(User.born, b), COMPARE, st.dates(date(1800, 1, 1), date(2010, 1, 1)))
    | st.builds(lambda a, b, c: a.between(b, c), NUMERIC, NUMERIC | NUMBERS, NUMBERS)
    | st.builds(User.age.in_, st.lists(NUMBERS, max_size=3))
    | st.builds(User.name.not_in, st.lists(TEXTS, max_size=3))
    | st.sampled_from([User.active, User.age.is_(None), User.born.is_not(None)])
)
CRITERIA = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(and_, inner, inner)
        | st.builds(or_, inner, inner)
        | st.builds(or_, inner, inner, inner)
        | st.builds(not_, inner)
    ),
    max_leaves=6,
)


@hypothesis.settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(criterion=CRITERIA)
def test_criteria_select_the_same_rows(session, criterion) -> None:  # noqa: F811
    """Any nesting of comparisons selects the same rows of a real table after the wire."""
    same(session, criterion)
