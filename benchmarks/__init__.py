"""What eval.py needs beside a model.

    loaders    one short function for each benchmark's format, from its files to rows
    gold       when an answer equals gold that others wrote: a looser equality, several values
    score      verdicts, and the statistics over many; imports no loader, so a run can use it
    results    what an evaluation prints and writes
"""
