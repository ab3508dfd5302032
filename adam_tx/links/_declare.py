"""What a link is declared with, in one place for the files here: names that users have from `adam_tx`, and `Now`."""

from adam_tx._core.hyperparams import Decay as Decay
from adam_tx._core.hyperparams import NonNegative as NonNegative
from adam_tx._core.hyperparams import Positive as Positive
from adam_tx._core.hyperparams import fixed as fixed
from adam_tx._core.leaf_step import Now as Now
from adam_tx._core.rule import Rule as Rule
from adam_tx._core.rule import Slot as Slot
from adam_tx._core.rule import mean as mean
from adam_tx._core.rule import total as total
from adam_tx._core.storage import StorageLike as StorageLike
from adam_tx._core.storage import as_storage as as_storage
from adam_tx._link import link as link
