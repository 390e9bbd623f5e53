"""What a prune writes before its fence: new packs with what is needed of old ones, and indexes without these."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.repository.index import decoded_segment
from holdfast_common.repository.index_rewrite import OpenIndex, index_of_packs, rewritten_index
from holdfast_common.repository.key_sets import ReaderKeys
from holdfast_common.repository.layout import METADATA_BYTES_MAX, ObjectKind, index_name
from holdfast_common.repository.object_store import ObjectStore
from holdfast_common.repository.pack import PackContents
from holdfast_common.repository.pack_survey import IndexFact, PackSurvey
from holdfast_common.repository.prune_plan import IndexPlan, PackPlan
from holdfast_common.repository.prune_progress import MOVING, PruneProgress, Tell
from holdfast_common.repository.randomness import Randomness
from holdfast_common.repository.repack import Repacked, repack
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


def _opened(store: ObjectStore, fact: IndexFact, keys: ReaderKeys) -> OpenIndex:
    data = store.get(fact.name, length_max=METADATA_BYTES_MAX)
    body = keys.open(ObjectKind.INDEX, data, object_id=fact.object_id).body
    return OpenIndex(decoded_segment(body), body)
