"""SQLAlchemy criteria as data: comparisons of one table's columns, and nothing that is SQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import and_, bindparam, false, not_, null, or_, true
from sqlalchemy.sql import elements, operators, visitors
from sqlalchemy.sql.elements import ClauseElement, ColumnElement
from sqlalchemy.sql.schema import Column, Table

from .errors import ArgumentError
from .wire import TAG

# The operators that cross, by the name of SQLAlchemy's operator function. Functions, subqueries,
# text() and other tables do not: a message must not reach beyond the repository's own table.
_BINARY = {
    name: getattr(operators, name)
    for name in (
        *("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "mod", "concat_op"),
        *("like_op", "not_like_op", "ilike_op", "not_ilike_op", "in_op", "not_in_op"),
        *("is_", "is_not", "is_distinct_from", "is_not_distinct_from"),
        *("startswith_op", "not_startswith_op", "endswith_op", "not_endswith_op"),
        *("contains_op", "not_contains_op"),
    )
}
_NAMES = {function: name for name, function in _BINARY.items()}
_CONSTANTS: dict[str, Callable[[], ColumnElement[Any]]] = {
    "null": null,
    "true": true,
    "false": false,
}
_UNARY: dict[Any, str] = {operators.inv: "not", operators.neg: "neg"}
_DEPTH_LIMIT = 200  # well below Python's recursion limit, well above any criteria by hand


class CriteriaCodec:
    """Carries criteria over the columns of the tables it was told of."""

    def __init__(self) -> None:
        self._tables: dict[str, Table] = {}

    def allow(self, table: Table) -> None:
        """Let criteria over ``table`` travel."""
        self._tables[table.fullname] = table

    def encode(self, value: Any, inner: Callable[[Any, str], Any], path: str) -> Any:
        """The expression's data; NotImplemented if it is none; `ArgumentError` if it may not."""
        if hasattr(value, "__clause_element__"):
            value = value.__clause_element__()
        if not isinstance(value, ClauseElement):
            return NotImplemented
        return {TAG: "sql", "v": self._node(value, inner, path)}

    def decode(self, tag: str, data: Any, inner: Callable[[Any], Any]) -> Any:
        """The expression again, built by SQLAlchemy's own operators."""
        if tag != "sql":
            return NotImplemented
        return self._build(data, inner, 0)

    def _node(  # noqa: C901 - one case for each kind of node
        self, node: Any, inner: Callable[[Any, str], Any], path: str
    ) -> list[Any]:
        def sub(part: Any) -> list[Any]:
            return self._node(part, inner, path)

        if isinstance(node, Column) and isinstance(node.table, Table):
            self.allow(node.table)
            return ["column", node.table.fullname, node.key]
        if isinstance(node, elements.BindParameter):
            return ["value", inner(node.effective_value, path)]
        if isinstance(node, elements.Null | elements.True_ | elements.False_):
            return [type(node).__name__.strip("_").lower()]
        if isinstance(node, elements.Grouping):
            return sub(node.element)
        if isinstance(node, elements.BooleanClauseList):
            return [_connective(node.operator, path), *map(sub, node.clauses)]
        if isinstance(node, elements.ExpressionClauseList) and node.operator in _NAMES:
            # SQLAlchemy flattens chains of one associative operator: a + b + c.
            first, *rest = map(sub, node.clauses)
            for part in rest:
                first = ["binary", _NAMES[node.operator], first, part, None]
            return first
        if isinstance(node, elements.AsBoolean):
            return ["not", sub(node.element)] if node.operator is operators.is_false else (
                sub(node.element)
            )
        if isinstance(node, elements.UnaryExpression) and node.operator in _UNARY:
            return [_UNARY[node.operator], sub(node.element)]
        if isinstance(node, elements.BinaryExpression):
            return self._binary(node, sub, path)
        raise _refused(path, node)

    @staticmethod
    def _binary(
        node: elements.BinaryExpression[Any], sub: Callable[[Any], list[Any]], path: str
    ) -> list[Any]:
        if node.operator in (operators.between_op, operators.not_between_op):
            low, high = node.right.element.clauses if hasattr(node.right, "element") else (
                node.right.clauses
            )
            between = ["between", sub(node.left), sub(low), sub(high)]
            return between if node.operator is operators.between_op else ["not", between]
        name = _NAMES.get(node.operator)
        if name is None:
            raise _refused(path, node)
        escape = (node.modifiers or {}).get("escape")
        return ["binary", name, sub(node.left), sub(node.right), escape]

    def _build(self, data: Any, inner: Callable[[Any], Any], depth: int) -> Any:
        if depth > _DEPTH_LIMIT:
            raise ArgumentError(f"criteria nested deeper than {_DEPTH_LIMIT}")
        kind, *rest = data

        def sub(part: Any) -> Any:
            return self._build(part, inner, depth + 1)

        if kind == "column":
            return self._column(*rest)
        if kind == "value":
            return bindparam(None, inner(rest[0]))
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]()
        if kind in ("and", "or"):
            return (and_ if kind == "and" else or_)(*map(sub, rest))
        if kind == "not":
            return not_(sub(rest[0]))
        if kind == "neg":
            return -sub(rest[0])
        if kind == "between":
            return sub(rest[0]).between(sub(rest[1]), sub(rest[2]))
        return self._build_binary(*rest, sub=sub, inner=inner)

    @staticmethod
    def _build_binary(
        name: str,
        left: Any,
        right: Any,
        escape: str | None,
        *,
        sub: Callable[[Any], Any],
        inner: Callable[[Any], Any],
    ) -> Any:
        # A plain value, so that SQLAlchemy types it after the column (dates, enums, IN lists).
        operand = inner(right[1]) if right[0] == "value" else sub(right)
        function = _BINARY[name]
        if escape is not None:
            return function(sub(left), operand, escape=escape)
        return function(sub(left), operand)

    def _column(self, table: str, key: str) -> Any:
        try:
            return self._tables[table].c[key]
        except KeyError:
            raise ArgumentError(f"no column {table}.{key} is known to this node") from None


def tables_in(expression: Any) -> set[str]:
    """Names of the tables whose columns ``expression`` uses."""
    if hasattr(expression, "__clause_element__"):
        expression = expression.__clause_element__()
    return {
        node.table.fullname
        for node in visitors.iterate(expression)
        if isinstance(node, Column) and isinstance(node.table, Table)
    }


def _connective(operator: Any, path: str) -> str:
    if operator in (operators.and_, operators.or_):
        return "and" if operator is operators.and_ else "or"
    raise ArgumentError(f"{path} uses {operator!r}, which cannot be sent")


def _refused(path: str, node: Any) -> ArgumentError:
    return ArgumentError(
        f"{path} holds {str(node)[:80]!r} ({type(node).__name__}), which cannot be sent: criteria "
        "are comparisons of the repository's own columns with values; for more, write a @write "
        "method, which runs on the primary"
    )
