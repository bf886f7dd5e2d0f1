"""Measurements of tp2 beside what people would use instead, in one run on one machine: ``scripts/bench``.

The rules are the same for every bench. Contenders run in turn, and the turn changes from round to round, so that what
else the machine does hits all of them. Nothing is chosen from the rounds: the median counts, and minimum and maximum
stand beside it. A contender that did not do its work (a lost query, a wrong answer, a counter that does not add up)
ends the bench: there is no figure for work that was not done.
"""
