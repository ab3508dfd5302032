"""What runs a step otherwise than `tx.update` under XLA: the same leaf's step, in one pass over memory."""
