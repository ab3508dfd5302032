"""What a training run needs around an optimizer: groups of parameters, a guard, metrics, averages of weights."""

from adam_tx.training._average_weights import average_weights as average_weights
from adam_tx.training._average_weights import averaged_weights as averaged_weights
from adam_tx.training._average_weights import with_averaged_weights as with_averaged_weights
from adam_tx.training._explain import Explanation as Explanation
from adam_tx.training._explain import explain as explain
from adam_tx.training._groups import groups as groups
from adam_tx.training._groups import matching as matching
from adam_tx.training._guard import LossScale as LossScale
from adam_tx.training._guard import guard as guard
from adam_tx.training._metrics import metrics as metrics
from adam_tx.training._monitor import monitor as monitor
from adam_tx.training._multipliers import layer_decay as layer_decay
from adam_tx.training._multipliers import times as times
from adam_tx.training._stacked import stacked as stacked
from adam_tx.training.plot import plot_metrics as plot_metrics
from adam_tx.training.window import Window as Window
