"""One pass on a CPU: a tile's program as LLVM IR, compiled by llvmlite, called by XLA over its own threads.

phases      a tile's equations, in the order of its loops
operations  an equation as LLVM IR
kernel      the loops around them
engine      LLVM
call        many leaves in a call of XLA's
"""
