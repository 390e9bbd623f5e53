"""What a prune writes: new packs with what is needed of old ones, indexes without these, and then the fence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import Locked, ObjectExists, ObjectMissing, RepositoryFull
from holdfast_common.repository.fence import Fence, newest_number, store_fence
from holdfast_common.repository.index import decoded_segment
from holdfast_common.repository.index_rewrite import OpenIndex, index_of_packs, rewritten_index
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import (
    METADATA_BYTES_MAX,
    ObjectKind,
    fence_name,
    index_name,
)
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.pack import PackContents
from holdfast_common.repository.pack_survey import IndexFact, PackSurvey
from holdfast_common.repository.prune_plan import IndexPlan, PackPlan
from holdfast_common.repository.prune_progress import MOVING, PruneProgress, Tell
from holdfast_common.repository.randomness import Randomness
from holdfast_common.repository.repack import Repacked, repack
from holdfast_common.repository.reserve import give_back_reserve
from holdfast_common.repository.sealed_object import ObjectHeader


def copy_needed(
    store: ObjectStore,
    survey: PackSurvey,
    plan: PackPlan,
    *,
    keys: ReaderKeys,
    randomness: Randomness,
    go_on: Callable[[], bool],
    tell: Tell,
) -> Repacked:
    """Copy what is needed of the packs that the plan repacks. Raises: RepositoryFull, RepositoryFailed."""
    packs = ((survey.contents[each], survey.needed_blobs[each]) for each in plan.repacked)

    def moved(done: int) -> None:
        tell(PruneProgress(step=MOVING, done=done, total=plan.moved_bytes))

    if plan.repacked:
        moved(0)
    return repack(store, packs, keys=keys, randomness=randomness, go_on=go_on, moved=moved)


def rewrite_indexes(
    store: ObjectStore,
    survey: PackSurvey,
    plan: IndexPlan,
    *,
    added: Sequence[PackContents],
    going: Collection[bytes],
    keys: ReaderKeys,
    signing_key: Ed25519PrivateKey,
    randomness: Randomness,
) -> list[bytes]:
    """Put one index object for each group of the plan; the object ids that they stand in place of.

    ``added``: packs that no index names yet. ``going``: packs that are named no more.
    Raises: RepositoryFull, RepositoryFailed.
    """
    kept = (survey.packs.keys() - set(going)) | {contents.digest for contents in added}
    done: list[bytes] = []
    groups = list(plan.rewritten)
    if added and not groups:
        groups.append(())
    for number, group in enumerate(groups):
        parts = [_opened(store, fact, keys) for fact in group]
        if number == 0 and added:
            parts.append(index_of_packs(added))
        replaced = {fact.object_id for fact in group}
        replaced |= {each for fact in group for each in fact.supersedes}
        body = rewritten_index(
            parts, kept=kept, writers=survey.origin_writers, supersedes=sorted(replaced)
        )
        data = keys.seal(ObjectKind.INDEX, body, signing_key=signing_key, randomness=randomness)
        store.put(index_name(ObjectHeader.decode(data).object_id), data)
        done += [fact.object_id for fact in group]
    return done


def publish_fence(
    store: ObjectStore,
    fence: Fence,
    *,
    keys: ReaderKeys,
    signing_key: Ed25519PrivateKey,
    randomness: Randomness,
) -> bool:
    """Put it, into the room that is kept for it if there is no other; whether that was needed.

    Raises: Locked when another one prunes, RepositoryFull, RepositoryFailed.
    """
    epoch = fence.closed_epoch
    was_full = False
    while True:
        try:
            store_fence(store, fence, keys=keys, signing_key=signing_key, randomness=randomness)
            break
        except RepositoryFull:
            was_full = True
            if not give_back_reserve(store):
                raise
        except ObjectExists as error:
            if was_full:  # it is this round's own, put by a call that was told of no room
                raise RepositoryFull("the repository has no room left", epoch=epoch) from error
            raise Locked("another one prunes this repository", epoch=epoch) from error
    try:
        check_newest(store, epoch)
    except Locked:  # the number was free again: what this round decided is long out of date
        with contextlib.suppress(ObjectMissing):
            store.delete(fence_name(epoch))
        raise
    return was_full


def check_newest(store: ObjectStore, epoch: int) -> None:
    """That no later fence is there than this round's. Raises: Locked, RepositoryFailed."""
    newest = newest_number(store)
    if newest > epoch:
        raise Locked("another one prunes this repository", epoch=newest)


def _opened(store: ObjectStore, fact: IndexFact, keys: ReaderKeys) -> OpenIndex:
    data = store.get(fact.name, length_max=METADATA_BYTES_MAX)
    body = keys.open(ObjectKind.INDEX, data, object_id=fact.object_id).body
    return OpenIndex(decoded_segment(body), body)
