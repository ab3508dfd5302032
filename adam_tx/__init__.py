"""Adam taken apart into Optax transformations, which put together again are exactly Adam."""

from adam_tx import interop as interop
from adam_tx.bias_correction import BiasCorrectionState as BiasCorrectionState
from adam_tx.bias_correction import bias_correction as bias_correction
from adam_tx.chain import Link as Link
from adam_tx.chain import chain as chain
from adam_tx.first_moment import ScaleByMomentumState as ScaleByMomentumState
from adam_tx.first_moment import scale_by_momentum as scale_by_momentum
from adam_tx.optimizers import adam as adam
from adam_tx.optimizers import adamw as adamw
from adam_tx.second_moment import ScaleByMaxRmsState as ScaleByMaxRmsState
from adam_tx.second_moment import ScaleByRmsState as ScaleByRmsState
from adam_tx.second_moment import scale_by_max_rms as scale_by_max_rms
from adam_tx.second_moment import scale_by_rms as scale_by_rms
from adam_tx.summary import get_config as get_config
from adam_tx.summary import summary as summary
