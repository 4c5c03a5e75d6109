"""On which nodes of a Ray cluster actors are requested."""

from __future__ import annotations

from collections import Counter

from fmnist_search.execution.ray_room import MAX_FAILED_STARTS, SUSPECT_SECONDS, ActorCounts, NodeState, Room
from fmnist_search.execution.ray_settings import RayResources, RaySettings

GIB = 2**30
GPU_SETTINGS = RaySettings(resources=RayResources(cpu=2, gpu=0.25, memory=4 * GIB))


def make_node(name: str, *, used: float = 0.0, **labels: str) -> NodeState:
    """Return a node of 16 cores, a GPU and 16 GiB, of which a share is used."""
    total = {"CPU": 16.0, "GPU": 1.0, "memory": 16.0 * GIB}
    return NodeState(name, total, {key: amount * (1 - used) for key, amount in total.items()}, labels)


def chosen(room: Room, *nodes: NodeState, actors: ActorCounts | None = None, limit: int | None = None) -> Counter[str]:
    return Counter(room.choose(nodes, actors or ActorCounts(), limit))


def test_the_scarcest_resource_limits_the_actors_of_a_node() -> None:
    small_store = NodeState(
        "b", {"CPU": 64.0, "GPU": 8.0, "memory": 9.0 * GIB}, {"CPU": 64.0, "GPU": 8.0, "memory": 9.0 * GIB}
    )
    without_gpu = NodeState("c", {"CPU": 64.0, "memory": 99.0 * GIB}, {"CPU": 64.0, "memory": 99.0 * GIB})
    assert chosen(Room(GPU_SETTINGS), make_node("a"), small_store, without_gpu) == {"a": 4, "b": 2}


def test_what_others_use_and_actors_that_have_not_started_take_room() -> None:
    actors = ActorCounts(placed=Counter(a=2), unplaced=Counter(a=1))
    assert chosen(Room(GPU_SETTINGS), make_node("a", used=0.5), make_node("b", used=0.8), actors=actors) == {"a": 1}


def test_the_emptiest_nodes_come_first() -> None:
    assert chosen(Room(GPU_SETTINGS), make_node("a", used=0.5), make_node("b"), limit=2) == {"b": 2}
    assert chosen(Room(GPU_SETTINGS), make_node("a", used=0.5), make_node("b"), limit=4) == {"a": 1, "b": 3}
    assert chosen(Room(GPU_SETTINGS), make_node("a"), make_node("b"), limit=4) == {"a": 2, "b": 2}
    assert chosen(Room(GPU_SETTINGS), make_node("a"), limit=0) == {}


def test_only_nodes_with_the_labels_get_actors() -> None:
    settings = RaySettings(labels={"card": "H100"})
    assert set(chosen(Room(settings), make_node("a", card="H100"), make_node("b", card="T4"), make_node("c"))) == {"a"}


def test_a_node_with_which_an_actor_was_lost_gets_none_for_some_seconds() -> None:
    now = 100.0
    room = Room(GPU_SETTINGS, clock=lambda: now)
    room.suspect("a")
    assert set(chosen(room, make_node("a"), make_node("b"))) == {"b"}
    now += SUSPECT_SECONDS
    assert set(chosen(room, make_node("a"), make_node("b"))) == {"a", "b"}


def test_a_node_on_which_actors_do_not_start_is_left_out() -> None:
    room = Room(GPU_SETTINGS)
    for attempt in range(1, MAX_FAILED_STARTS):
        assert room.note_start("a", succeeded=False), attempt
    assert room.note_start("a", succeeded=True)
    assert room.has_usable([make_node("a")])
    assert [room.note_start("a", succeeded=False) for _ in range(MAX_FAILED_STARTS)][-1] is False
    assert chosen(room, make_node("a")) == {}
    assert not room.has_usable([make_node("a")])
