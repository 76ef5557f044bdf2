"""
Every error this package raises, and what each one says about the write.

LiteFSCeleryError
├── ConfigurationError             a setting is wrong or missing; names the setting and the remedy
├── MountUnavailable               the LiteFS mount is dead, empty or unreadable
├── DatabaseMissing                LiteFS is there, the database file is not
├── LiteFSUnreachable              the node's LiteFS API did not answer
├── OpenReadTransaction            refused before anything was sent: the caller holds a Session open
├── MethodMisuse                   a write method did what it must not; rolled back
├── PromotionFailed                LiteFS did not hand the primary role over
└── WriteError                     about one write; has .write_id and .method
    ├── ArgumentError              known not to have run: the arguments cannot be sent
    ├── UnknownMethod              known not to have run: the primary does not have the method
    ├── WriteConflict              known not to have run: the id belongs to another write
    ├── WriteExpired               known not to have run, and it never will
    ├── RemoteError                refused and rolled back; the exception's class is not known here
    ├── OutboxFull                 known not to have been submitted: the outbox is at its limit
    ├── BrokerUnavailable          not sent, or perhaps sent: see .may_have_been_sent
    ├── WriteTimeout               outcome unknown: ask outcome(write_id) later
    ├── NotYetVisible              committed on the primary, not readable on this node yet
    └── NotAcknowledged            internal: a group's commit could not be confirmed
        ├── OutOfTurn              internal: the write that must come before it has no outcome yet
        └── OutcomeUnreadable      internal: it has an outcome, which this node cannot decode
"""

from __future__ import annotations


class LiteFSCeleryError(Exception):
    """Anything this package raises on purpose."""


class ConfigurationError(LiteFSCeleryError, ValueError):
    """One or more settings are wrong; the message names each and its remedy."""


class MountUnavailable(LiteFSCeleryError):
    """A path under the LiteFS mount cannot be read: the mount is dead, empty or not mounted."""


class DatabaseMissing(LiteFSCeleryError):
    """The mount is alive but holds no database of that name."""


class LiteFSUnreachable(LiteFSCeleryError):
    """The LiteFS API did not answer, or not as LiteFS does."""


class OpenReadTransaction(LiteFSCeleryError):
    """The calling thread holds a local Session open; waiting inside it would stop replication."""


class MethodMisuse(LiteFSCeleryError):
    """A write method tried to commit, attach or write elsewhere; all it did was rolled back."""


class PromotionFailed(LiteFSCeleryError):
    """LiteFS did not make the node primary within the time given."""


class WriteError(LiteFSCeleryError):
    """Something about one write; ``write_id`` is a UUID string, also the Celery task id."""

    def __init__(self, message: str, write_id: str = "", method: str = "") -> None:
        super().__init__(message)
        self.write_id = write_id
        self.method = method


class ArgumentError(WriteError, TypeError):
    """Nothing was sent: an argument or a result cannot be encoded, is too large or does not fit."""


class UnknownMethod(WriteError):
    """The node that is primary has no such write method; nothing was changed."""


class WriteConflict(WriteError):
    """The id was used before with another method or other arguments; nothing was changed."""


class WriteExpired(WriteError):
    """The deadline had passed when the primary came to it; it did not run and never will."""


class RemoteError(WriteError):
    """The method raised, and was rolled back; its exception cannot be rebuilt in this process."""

    def __init__(
        self, message: str, write_id: str = "", method: str = "", exception: str = ""
    ) -> None:
        super().__init__(message, write_id, method)
        self.exception = exception


class OutboxFull(WriteError):
    """The outbox is at its limit, or its disk is full; nothing was submitted."""


class BrokerUnavailable(WriteError):
    """
    The broker could not be reached before the deadline.

    ``may_have_been_sent`` is False when no attempt got as far as sending; when it is True the
    write may yet run, once, until its deadline.
    """

    def __init__(
        self,
        message: str,
        write_id: str = "",
        method: str = "",
        *,
        may_have_been_sent: bool = True,
    ) -> None:
        super().__init__(message, write_id, method)
        self.may_have_been_sent = may_have_been_sent


class WriteTimeout(WriteError, TimeoutError):
    """The write did not appear on this node in time; its outcome is unknown, not negative."""


class NotYetVisible(WriteError, TimeoutError):
    """The primary committed the write (``outcome``), but this node cannot read it yet."""

    def __init__(
        self, message: str, write_id: str = "", method: str = "", outcome: object = None
    ) -> None:
        super().__init__(message, write_id, method)
        self.outcome = outcome


class NotAcknowledged(WriteError):
    """The commit that held this write failed or could not be confirmed; the ledger decides."""


class OutOfTurn(NotAcknowledged):
    """It arrived before the write that it must come after, and did not run; it comes again."""


class OutcomeUnreadable(NotAcknowledged):
    """It came again, and the outcome in its row cannot be decoded here; its caller reads it."""
