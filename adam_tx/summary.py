from typing import Any


def summary(tx: Any, params: Any) -> Any: ...
