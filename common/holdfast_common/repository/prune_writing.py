"""What a prune writes: new packs with what is needed of old ones, indexes without these, and then the fence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.errors import (
    FormatError,
    IntegrityError,
    Locked,
    ObjectExists,
    ObjectMissing,
    RepositoryFull,
)
from holdfast_common.repository.fence import Fence, newest_number, store_fence
from holdfast_common.repository.index import decoded_segment
from holdfast_common.repository.index_claims import is_clear
from holdfast_common.repository.index_rewrite import OpenIndex, index_of_packs, rewritten_index
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import (
    METADATA_BYTES_MAX,
    ObjectKind,
    fence_name,
    index_name,
)
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.pack import PackContents, read_contents
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
    contested, unclear = _contested(store, survey, plan, kept=kept, keys=keys)
    done: list[bytes] = []
    groups = [[fact for fact in group if not fact.packs & unclear] for group in plan.rewritten]
    groups = [group for group in groups if group]
    if added and not groups:
        groups.append([])
    for number, group in enumerate(groups):
        parts = [_opened(store, fact, keys) for fact in group]
        own = [contested[each] for each in sorted(_packs_of(group) & contested.keys())]
        if number == 0:
            own += added
        if own:
            parts.append(index_of_packs(own))
        replaced = {fact.object_id for fact in group}
        replaced |= {each for fact in group for each in fact.supersedes}
        body = rewritten_index(
            parts,
            kept=kept,
            besides=frozenset(contested),
            writers=_writers(survey, contested),
            supersedes=sorted(replaced),
        )
        data = keys.seal(ObjectKind.INDEX, body, signing_key=signing_key, randomness=randomness)
        store.put(index_name(ObjectHeader.decode(data).object_id), data)
        done += [fact.object_id for fact in group]
    return done


def _contested(
    store: ObjectStore,
    survey: PackSurvey,
    plan: IndexPlan,
    *,
    kept: Collection[bytes],
    keys: ReaderKeys,
) -> tuple[dict[bytes, PackContents], set[bytes]]:
    """Packs of which index objects say different things, as their own footers have it.

    And those whose footers cannot be read: what names these stays as it is. Raises: RepositoryFailed.
    """
    claims: dict[bytes, set[bytes]] = {}
    for fact in survey.indexes:
        for digest, claim in fact.claims.items():
            claims.setdefault(digest, set()).add(claim)
    rewritten = {digest for group in plan.rewritten for digest in _packs_of(group)}
    contents: dict[bytes, PackContents] = {}
    unclear: set[bytes] = set()
    for digest in sorted(rewritten & set(kept)):
        if len(claims[digest]) < 2 and all(map(is_clear, claims[digest])):
            continue
        length = survey.packs[digest].length
        try:
            contents[digest] = survey.contents.get(digest) or read_contents(
                store, digest, length=length, keys=keys
            )
        except (IntegrityError, FormatError):
            unclear.add(digest)
    return contents, unclear


def _writers(survey: PackSurvey, contested: Mapping[bytes, PackContents]) -> dict[bytes, bytes]:
    """By origin; who wrote a contested pack is not known: nobody trusts it before somebody proved it."""
    doubtful = {
        segment.header.origin_id for contents in contested.values() for segment in contents.segments
    }
    return {key: writer for key, writer in survey.origin_writers.items() if key not in doubtful}


def _packs_of(group: Sequence[IndexFact]) -> set[bytes]:
    return {digest for fact in group for digest in fact.packs}


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
    if blake3(data).digest() != fact.digest:  # nobody looked who signed this one
        raise IntegrityError("an index object was exchanged while it was used", name=fact.name)
    body = keys.open(ObjectKind.INDEX, data, object_id=fact.object_id).body
    return OpenIndex(decoded_segment(body), body)
