"""What almost every optimizer is composed with, in one place for the files here; the links that differ they import."""

from adam_tx._chain import chain as chain
from adam_tx._core.hyperparams import Decay as Decay
from adam_tx._core.hyperparams import NonNegative as NonNegative
from adam_tx._core.storage import StorageLike as StorageLike
from adam_tx._link import Link as Link
from adam_tx._link import optimizer as optimizer
from adam_tx.links.learning_rate import scale_by_learning_rate as scale_by_learning_rate
