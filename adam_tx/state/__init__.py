"""A state beyond the code that made it: exported, imported, migrated and laid out over a mesh."""

from adam_tx.state._migrate import migrate as migrate
from adam_tx.state._second_moment import second_moment as second_moment
from adam_tx.state.export import export_state as export_state
from adam_tx.state.imports import import_state as import_state
from adam_tx.state.sharding import state_sharding as state_sharding
