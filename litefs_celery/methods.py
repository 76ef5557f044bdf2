"""`@write` and `@read`: methods that run where they must, and the ways to call them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from celery.utils.saferepr import saferepr

from .errors import ArgumentError
from .results import ReadResult, WriteResult
from .savepoint import current_session, refuse_inside_write
from .wire import Write, unwrap

if TYPE_CHECKING:
    from .database import LiteFSCelery

P = ParamSpec("P")
R = TypeVar("R")
HIDDEN = ("(hidden)", "{}")
# As much as Flower shows in a row.
SHOWN_LIMIT = 1024


@dataclass(frozen=True)
class Options:
    """How one call is made; seconds, or None for the settings' defaults."""

    timeout: float | None = None
    write_id: str = ""
    node: str = ""
    order_key: str = ""


class Method(Generic[P, R]):
    """
    A decorated repository method: on an instance a `BoundWrite` or `BoundRead`, ready to call.

    ``name`` is the Celery task's name, set when the repository class is attached to a database.
    """

    def __init__(
        self,
        function: Callable[Concatenate[Any, P], R],
        bound: type[BoundWrite[P, R] | BoundRead[P, R]],
        *,
        show_arguments: bool,
    ) -> None:
        self.function = function
        self.bound = bound
        self.show_arguments = show_arguments
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self.__wrapped__ = function
        self._signature = inspect.signature(function)

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise `ArgumentError` unless the arguments fit the signature; nothing was sent."""
        try:
            self._signature.bind(None, *args, **kwargs)
        except TypeError as error:
            raise ArgumentError(f"{self.__name__}{self._signature}: {error}") from None

    def shown(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, str]:
        """What people see of the arguments."""
        if not self.show_arguments:
            return HIDDEN
        return saferepr(args, SHOWN_LIMIT), saferepr(dict(kwargs), SHOWN_LIMIT)


class Write_(Method[P, R]):  # noqa: N801 - `write` is the decorator, `Write` the message
    """What `@write` makes of a method."""

    @overload
    def __get__(self, instance: None, owner: type) -> Write_[P, R]: ...
    @overload
    def __get__(self, instance: Any, owner: type) -> BoundWrite[P, R]: ...
    def __get__(self, instance: Any, owner: type) -> Write_[P, R] | BoundWrite[P, R]:
        """The method of an instance, or itself on the class."""
        return self if instance is None else BoundWrite(self, instance, Options())


class Read_(Method[P, R]):  # noqa: N801
    """What `@read` makes of a method."""

    @overload
    def __get__(self, instance: None, owner: type) -> Read_[P, R]: ...
    @overload
    def __get__(self, instance: Any, owner: type) -> BoundRead[P, R]: ...
    def __get__(self, instance: Any, owner: type) -> Read_[P, R] | BoundRead[P, R]:
        """The method of an instance, or itself on the class."""
        return self if instance is None else BoundRead(self, instance, Options())


class _Bound(Generic[P, R]):
    def __init__(self, method: Method[P, R], repository: Any, options: Options) -> None:
        self._method = method
        self._repository = repository
        self._options = options
        self.__doc__ = method.__doc__
        self.__name__ = method.__name__

    @property
    def task_name(self) -> str:
        """The Celery task's name."""
        name: str = type(self._repository).task_names[self.__name__]
        return name

    @property
    def _db(self) -> LiteFSCelery:
        db: LiteFSCelery = self._repository.db
        return db

    def _encoded(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        self._method.check(args, kwargs)
        # Sorted, so that a retry under the same write_id has the same fingerprint.
        named = {name: kwargs[name] for name in sorted(kwargs)}
        return self._db.wire.dumps([list(args), named], f"{self.__name__}: arguments")


class BoundWrite(_Bound[P, R]):
    """
    A write method of a repository.

    Calling it waits until its effect is readable on this node. It raises what the method raised,
    or `WriteTimeout`, `NotYetVisible`, `BrokerUnavailable`, which say what is known of the write.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run on the primary, return when readable here; inside a write, join its transaction."""
        session = current_session(self._db)
        if session is not None:
            self._method.check(args, kwargs)
            return self._method.function(self._repository, *args, **kwargs)
        timeout = self._timeout()
        result: R = self._db.forwarder.call(self._write(args, kwargs, timeout), timeout)
        return result

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The same, awaitable: the event loop is not blocked."""
        refuse_inside_write(".aio()")
        timeout = self._timeout()
        write = self._write(args, kwargs, timeout)
        future = self._db.forwarder.start(write, timeout)
        result: R = unwrap(await asyncio.wrap_future(future), write)
        return result

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> WriteResult[R]:
        """Submit the write and go on; look at the result later."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> WriteResult[R]:
        """
        Submit with Celery's own verb.

        Returns once the broker has it, or the primary's own commit where this node is primary.
        Raises `BrokerUnavailable` where it could not be sent.
        """
        timeout = self._options.timeout
        if timeout is None:
            timeout = self._db.settings.submit_timeout
        write = self._write(args, kwargs or {}, timeout)
        self._db.submit(write)
        return WriteResult(self._db, write.id)

    def options(
        self, *, timeout: float | None = None, write_id: str | None = None,
        order_key: str | None = None,
    ) -> BoundWrite[P, R]:
        """
        The same method called otherwise.

        ``timeout`` in seconds; ``write_id`` an idempotency key (a UUID): a second call with the
        same key and arguments is answered from the ledger, one with other arguments refused.
        ``order_key`` any text: writes of this node under the same one take effect in the order in
        which they were called or submitted; it needs ``litefs_outbox_dir``.
        """
        options = replace(
            self._options,
            timeout=timeout if timeout is not None else self._options.timeout,
            write_id=write_id if write_id is not None else self._options.write_id,
            order_key=order_key if order_key is not None else self._options.order_key,
        )
        return BoundWrite(self._method, self._repository, options)

    def _timeout(self) -> float:
        timeout = self._options.timeout
        return self._db.settings.write_timeout if timeout is None else timeout

    def _write(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], timeout: float) -> Write:
        return self._db.new_write(
            self.task_name,
            self._encoded(args, kwargs),
            timeout=timeout,
            write_id=self._options.write_id,
            shown=self._method.shown(args, kwargs),
            order_key=self._options.order_key,
        )


class BoundRead(_Bound[P, R]):
    """A read method: called, it runs here and now; submitted, beside the data of a node."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run on this node's replica, in this thread."""
        with self._repository.reading():
            return self._method.function(self._repository, *args, **kwargs)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> ReadResult[R]:
        """Run in this node's worker (or the one named in `options`) on its replica."""
        encoded = self._encoded(args, kwargs)
        shown = self._method.shown(args, kwargs)
        sent = self._db.send_read(self.task_name, encoded, node=self._options.node, shown=shown)
        return ReadResult(self._db, sent.id)

    def options(self, *, node: str) -> BoundRead[P, R]:
        """The same method, submitted to the worker of ``node``."""
        return BoundRead(self._method, self._repository, replace(self._options, node=node))


@overload
def write(function: Callable[Concatenate[Any, P], R]) -> Write_[P, R]: ...
@overload
def write(
    *, show_arguments: bool = True
) -> Callable[[Callable[Concatenate[Any, P], R]], Write_[P, R]]: ...
def write(function: Any = None, *, show_arguments: bool = True) -> Any:
    """
    Make a repository method one transaction on the primary, wherever it is called.

    Inside, ``self.session`` is the transaction. It commits when the method returns and rolls
    back when it raises; the exception is raised again at the caller, on any node. Arguments and
    result must be data (see the wire format). ``show_arguments=False`` keeps them out of Flower.
    """
    if function is None:
        return lambda inner: Write_(inner, BoundWrite, show_arguments=show_arguments)
    return Write_(function, BoundWrite, show_arguments=show_arguments)


@overload
def read(function: Callable[Concatenate[Any, P], R]) -> Read_[P, R]: ...
@overload
def read(
    *, show_arguments: bool = True
) -> Callable[[Callable[Concatenate[Any, P], R]], Read_[P, R]]: ...
def read(function: Any = None, *, show_arguments: bool = True) -> Any:
    """Make a repository method that reads this node's replica and can be submitted to a node."""
    if function is None:
        return lambda inner: Read_(inner, BoundRead, show_arguments=show_arguments)
    return Read_(function, BoundRead, show_arguments=show_arguments)
