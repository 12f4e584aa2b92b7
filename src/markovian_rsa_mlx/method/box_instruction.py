"""The request for an answer in a box, apart from the rules of answers, which take time to load."""

from typing import Final

#: Added to a question that asks for a number or a formula.
BOX_INSTRUCTION: Final = "\n\nPut your final answer within \\boxed{}."
