"""Whether a store can be written to by several processes at once: it must refuse a write whose condition does not hold."""

from functools import lru_cache

from unic_pipe.pipeline.process.progress import Reporter
from unic_pipe.pipeline.storage.store import Store
from unic_pipe.schemas.errors import UserError


def check_writers(store: Store, several: bool, reporter: Reporter) -> None:
    """Try a store's conditions, once per process; a local folder has them.
    Raises UserError: it ignores them, and several processes are to write."""
    if not store.remote or _conditional(store):
        return
    if several:
        raise UserError(
            f"{store.location} ignores conditional writes (If-None-Match, If-Match): two writers could overwrite each other.",
            "Extract with one process (without --workers, --part and --scheduler), or use a store that honours them.",
        )
    if store not in _said:
        _said.add(store)
        reporter.say(f"{store.location} ignores conditional writes: only this process may write there now")


_said: set[Store] = set()


@lru_cache(maxsize=16)
def _conditional(store: Store) -> bool:
    from unic_pipe.pipeline.storage.objects import ObjectStore

    return not isinstance(store, ObjectStore) or store.honours_conditions()
