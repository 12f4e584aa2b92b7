r"""Find answers: boxes, announcements, values that a sentence states, puzzles' texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markovian_rsa_mlx.method.answers import (
    AnswerKind,
    AnswerLevel,
    FoundAnswer,
    equal_text,
    find_answer,
    normalise,
    strongest_level,
)
from tests.support.timing import least_cpu_seconds

#: How a text ends, the answer in it, and its level.
FOUND = [
    # boxes
    (r"\boxed{42}", "42", "boxed"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", "boxed"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}", "boxed"),
    (r"\boxed{a\}b}", r"a\}b", "boxed"),
    (r"\boxed{x \\ y}", r"x \\ y", "boxed"),
    (r"first \boxed{1}, no: \boxed{2}.", "2", "boxed"),
    (r"\boxed{7} and then \boxed{}", "7", "boxed"),
    (r"\boxed{7} and then \boxed{ }", "7", "boxed"),
    (r"\boxed {3}", "3", "boxed"),
    (r"\boxed{ 5 }", "5", "boxed"),
    (r"\boxed{\boxed{9}}", "9", "boxed"),
    (r"so it is $\fbox{5}$ of 12 pears", "5", "boxed"),
    ("\\boxed{1}\nFinal answer: 2", "1", "boxed"),
    # boxes without braces
    (r"\boxed 4", "4", "boxed"),
    (r"3 apples, so $\boxed 5$ pears of 12.", "5", "boxed"),
    (r"$\boxed -5$", "-5", "boxed"),
    (r"$\boxed\pi$", r"\pi", "boxed"),
    (r"$\boxed\frac{1}{2}$", r"\frac{1}{2}", "boxed"),
    (r"$\boxed x$", "x", "boxed"),
    (r"$\boxed x^2$", "x^2", "boxed"),
    (r"$\boxed\frac12$", r"\frac12", "boxed"),
    (r"$\boxed\frac34$", r"\frac34", "boxed"),
    (r"$\boxed\dfrac\pi4$.", r"\dfrac\pi4", "boxed"),
    (r"So $\boxed-\frac12$.", r"-\frac12", "boxed"),
    (r"$\boxed\sqrt2$", r"\sqrt2", "boxed"),
    (r"$\boxed\sqrt{\frac12}$", r"\sqrt{\frac12}", "boxed"),
    (r"\boxed\text{Yes}", r"\text{Yes}", "boxed"),
    (r"$\boxed\mathbb R$", r"\mathbb R", "boxed"),
    (r"$\boxed\left(1, 2\right)$", r"\left(1, 2\right)", "boxed"),
    (r"$\boxed\begin{pmatrix}1\\2\end{pmatrix}$", r"\begin{pmatrix}1\\2\end{pmatrix}", "boxed"),
    (r"$\boxed 2\sqrt3$", r"2\sqrt3", "boxed"),
    (r"$\boxed 2\sqrt5$.", r"2\sqrt5", "boxed"),
    (r"$\boxed 3/4$", "3/4", "boxed"),
    (r"\boxed 5\text{ cm}", "5", "boxed"),
    (r"\boxed 4, so 5 is wrong", "4", "boxed"),
    # a command without its arguments is no answer
    (r"3 so $\boxed\frac$", "", "none"),
    (r"3 so \boxed\frac1", "", "none"),
    (r"3 so \boxed\sqrt{2", "", "none"),
    (r"3 so $\boxed\displaystyle$", "", "none"),
    # several boxes in one closing sentence
    (r"So $\boxed{3}$ or $\boxed{5}$.", "3, 5", "boxed"),
    (r"\boxed{3}, \boxed{5}", "3, 5", "boxed"),
    (r"$x_1 = \boxed{3}$ and $x_2 = \boxed{5}$", "3, 5", "boxed"),
    (r"\boxed{5} or \boxed{5}", "5", "boxed"),
    (r"Part a is \boxed{3}. Part b is \boxed{5}.", "5", "boxed"),
    (r"(a) $\boxed{3}$ (b) $\boxed{5}$", "3, 5", "boxed"),
    (r"(i) $\boxed{3}$; (ii) $\boxed{5}$", "3, 5", "boxed"),
    (r"a) \boxed{3}, b) \boxed{5}", "3, 5", "boxed"),
    (r"Part (a): $\boxed{3}$; part (b): $\boxed{5}$.", "3, 5", "boxed"),
    (r"There are $\boxed{3}$ red and $\boxed{5}$ blue.", "3, 5", "boxed"),
    (r"He has \(\boxed{3}\) red apples, \(\boxed{5}\) pears.", "3, 5", "boxed"),
    (r"The roots are $\boxed{3}$ and also $\boxed{5}$.", "3, 5", "boxed"),
    (r"\boxed{3} is wrong, so \boxed{5}", "5", "boxed"),
    (r"\boxed{3} was wrong, \boxed{5}", "5", "boxed"),
    (r"\boxed{3} becomes \boxed{5}", "5", "boxed"),
    (r"\boxed{3} for the first guess and \boxed{5}", "5", "boxed"),
    # boxes that hold nothing, and boxes that were cut off
    (r"\boxed{}", "", "none"),
    (r"\boxed{...}", "", "none"),
    (r"\boxed{\text{your answer}}", "", "none"),
    (r"\boxed{never closed", "", "none"),
    (r"\boxed{7} and then \boxed{8", "", "none"),
    (r"the answer is 7, so \boxed{", "", "none"),
    (r"\boxed{1} and \boxed", "", "none"),
    ("\\boxed{ends in a backslash\\", "", "none"),
    # announcements
    ("Final answer: 12", "12", "announced"),
    ("The final answer is 12", "12", "announced"),
    ("the answer is: 12", "12", "announced"),
    ("ANSWER = 12", "12", "announced"),
    ("My final answer: 12", "12", "announced"),
    ("**Final Answer:** 12", "12", "announced"),
    ("**Answer**: 12", "12", "announced"),
    ("**Answer: 12**", "12", "announced"),
    ("**The answer is 12.**", "12", "announced"),
    ("## Answer: x + 1", "x + 1", "announced"),
    ("> - Answer: 12", "12", "announced"),
    ("**Final Answer**\n\n12", "12", "announced"),
    ("### Final Answer:\n$$\n\\frac{1}{2}\n$$", r"\frac{1}{2}", "announced"),
    ("Answer: 1\nsome more\nAnswer: 2\nbye", "2", "announced"),
    ("The answer is 1. Wait. The answer is 2.", "2", "announced"),
    ("Final Answer: The final answer is $55$. I hope it is correct.", "55", "announced"),
    ("The answer is $5$ apples.", "5 apples", "announced"),
    ("Therefore, the answer is x = 5, because it fits.", "x = 5", "announced"),
    ("The correct answer is (C).", "(C)", "announced"),
    ("The answer is (2, 3).", "(2, 3)", "announced"),
    ("The answer is 3.5.", "3.5", "announced"),
    ("The answer is Evelyn.", "Evelyn", "announced"),
    ("The answer is no real solutions.", "no real solutions", "announced"),
    ("The answer to the question is 7.", "7", "announced"),
    ("So <answer> 57 </answer>", "57", "announced"),
    ("<answer>1</answer> no, <answer>2</answer>", "2", "announced"),
    ("He has 9 left.\n#### 9", "9", "announced"),
    ("Final answers: 3 and 5", "3 and 5", "announced"),
    ("**Answers:** 3 and 5", "3 and 5", "announced"),
    # an equation in x is not its right side, and an x between numbers is a sign
    ("The answer is $x^2 - 4 = 0$.", "x^2 - 4 = 0", "announced"),
    ("The answer is $x^2 - 5x + 6 = 0$.", "x^2 - 5x + 6 = 0", "announced"),
    ("The answer is $x^2=4$", "x^2=4", "announced"),
    ("The answer is 5X = 10.", "5X = 10", "announced"),
    ("The answer is $2 x + 6 = 0$.", "2 x + 6 = 0", "announced"),
    ("The answer is (x-2)^2 + 3 = 0", "(x-2)^2 + 3 = 0", "announced"),
    ("The answer is 3 x 4 = 12.", "12", "announced"),
    ("The answer is 2x3 = 6.", "6", "announced"),
    ("The answer is (2 + 3) x 4 = 20", "20", "announced"),
    ("The equation is 2x + 6 = 0.", "2x + 6 = 0", "weak"),
    ("The equation of the circle is $x^2 + y^2 = 25$.", "x^2 + y^2 = 25", "weak"),
    ("The equation gives 3 + 4 = 7.", "7", "weak"),
    # announcements of nothing
    ("Answer:\n", "", "none"),
    ("The answer is found by adding.", "", "none"),
    ("The answer is not clear", "", "none"),
    ("<answer></answer>", "", "none"),
    ("an answerable question: yes", "", "none"),
    ("I have no idea.", "", "none"),
    ("", "", "none"),
    # how SmolLM2 ends
    ("12 + 6 is 18.", "18", "weak"),
    ("12 + 6 = 18", "18", "weak"),
    ("28 * 3 = 8*3 = 24.", "24", "weak"),
    ("So, the final answer is 9 + 5 = 14 apples.", "14 apples", "announced"),
    ("The final answer is 55.", "55", "announced"),
    ("So it has 24 apples now.", "24 apples", "weak"),
    ("22 + 3 = 45\nThe answer is \\boxed{}.", "45", "weak"),
    ("15 * 4 = 60\n\nThe final answer is within \\boxed{}.", "60", "weak"),
    ("15 * 4 = 60\n\nYour answer is within the specified constraints.", "60", "weak"),
    ("He has 3 apples.\nThe answer is within the box.", "", "none"),
    ("15 * 4 = 60\nNo.\nThe answer is within the box.", "", "none"),
    ('The answer is "18"', "18", "announced"),
    ("The answer is “Paris”.", "Paris", "announced"),
    (r"The answer is only within \boxed{} and the rest is just the original message.", "", "none"),
    (r"So, the answer is \boxed{}\text{66 apples now sold to buy other things}.", "66 apples", "weak"),
    (
        "This is correct, and you can find it by multiplying 2 by 2 and adding it to 12 this way: (2 +",
        "",
        "none",
    ),
    # values that the last sentence states
    (r"Thus $x = \frac{1}{2}$.", r"\frac{1}{2}", "weak"),
    ("The total is -5 degrees.", "-5 degrees", "weak"),
    ("It costs 1,234.50 in total.", "1,234.50", "weak"),
    ("Now 10 - 4 = 6 apples are left.", "6 apples", "weak"),
    ("There were 3. Now nothing follows.", "", "none"),
    ("Is it 5?", "", "none"),
    ("Tom has 18 apples. I hope this helps!", "18 apples", "weak"),
    ("So he has 12 + 6 = eighteen apples.", "", "none"),
    ("It is 3:30 PM.", "3:30 PM", "weak"),
    ("So there are 3 + 4 = 7 and 7 + 2 = 9 birds.", "9 birds", "weak"),
    ("12 + 6 =", "", "none"),
    ("Call it x1.", "", "none"),
    # how Qwen, DeepSeek, Llama, gpt-oss and solutions of GSM8K, MATH and MMLU end
    ("### Final Answer\n\n$$\n\\boxed{\\dfrac{3}{8}}\n$$", "\\dfrac{3}{8}", "boxed"),
    (
        "Therefore, the answer is:\n\n\\[\n\\boxed{\n\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}\n}\n\\]",
        "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}",
        "boxed",
    ),
    ("---\n\n### ✅ Final Answer:\n\n$$\\boxed{204}$$", "204", "boxed"),
    ("**Final Answer:** $\\boxed{C}$", "C", "boxed"),
    (
        "\\boxed{\\left(-\\infty, \\tfrac{1}{2}\\right] \\cup \\{3\\}}",
        "\\left(-\\infty, \\tfrac{1}{2}\\right] \\cup \\{3\\}",
        "boxed",
    ),
    ("The final answer is $\\boxed{\\text{(B)}}$.", "\\text{(B)}", "boxed"),
    ("**Final Answer**\n\\boxed{113}", "113", "boxed"),
    ("**Answer:** \\(\\boxed{27}\\)", "27", "boxed"),
    ("\\[\n\\boxed{70}\n\\]\n\n(Checked by substitution.)", "70", "boxed"),
    ("Thus $m+n = 3+4 = \\boxed{007}$.", "007", "boxed"),
    ("So $x=\\boxed{2}$ and $y=\\boxed{3}$.", "2, 3", "boxed"),
    ("We first guessed \\boxed{12}. That is wrong, so the answer is \\boxed{13}.", "13", "boxed"),
    ("The final answer is: $\\boxed{\\frac{1}{2}}$. I hope it is correct.", "\\frac{1}{2}", "boxed"),
    ("Therefore, the final answer is 42. I hope it is correct.", "42", "announced"),
    ("Final Answer: The final answer is $6$. I hope it is correct.", "6", "announced"),
    ("The best answer is C.", "C", "announced"),
    ("The correct answer is (B).", "(B)", "announced"),
    ("The correct answer is B) Photosynthesis.", "B) Photosynthesis", "announced"),
    ("The answer is $18.", "$18", "announced"),
    ("**Answer: 42**", "42", "announced"),
    ("**Answer:** 42", "42", "announced"),
    ("**Answer**\n\n42", "42", "announced"),
    ("**Answer**\n\n\\[\n\\frac{5}{6}\n\\]", "\\frac{5}{6}", "announced"),
    ("\\[\n\\boxed{\\displaystyle \\frac{7}{3}}\n\\]", "\\displaystyle \\frac{7}{3}", "boxed"),
    ("Answer: **(C) 36**", "(C) 36", "announced"),
    ("Final answer: \\(3\\sqrt{2}\\)", "3\\sqrt{2}", "announced"),
    ("Final answer: 3/4", "3/4", "announced"),
    ("ANSWER: 17", "17", "announced"),
    ("She sells 9 * 2 = $<<9*2=18>>18.\n#### 18", "18", "announced"),
    ("#### 1,250", "1,250", "announced"),
    ("#### $5.50", "$5.50", "announced"),
    ("Total = 12 + 8 = 20 cookies.", "20 cookies", "weak"),
    ("So they have 3 + 4 = **7** apples.", "7 apples", "weak"),
    ("He has 1,200 dollars left.", "1,200 dollars", "weak"),
    ("The answer is D", "D", "announced"),
    ("The answer is (D).", "(D)", "announced"),
    ("Answer: D", "D", "announced"),
    ("Answer: D. None of the above", "D", "announced"),
    ("So the correct option is B.", "B", "announced"),
    ("The correct choice is **C**.", "C", "announced"),
    ("<answer>B</answer>", "B", "announced"),
    ("<answer>\n12\n</answer>", "12", "announced"),
    ("<answer>\\boxed{5}</answer>", "5", "boxed"),
    ("<ANSWER>5</ANSWER>", "5", "announced"),
    ("Put your answer in \\boxed{answer}.", "", "none"),
    ("The answer is \\boxed{?}", "", "none"),
    ("\\boxed{\\frac{1}{2}", "", "none"),
    ("The answer is \\boxed{5} since \\boxed{5", "", "none"),
    ("The answer is", "", "none"),
    ("The final answer is:", "", "none"),
    ("So the answer is the number of ways to", "", "none"),
    ("We need to find x. Let me think about", "", "none"),
    ("x + 3 = 7, so x = 4.", "4", "weak"),
    ("$$x = \\frac{5}{2}$$", "\\frac{5}{2}", "weak"),
    ("Hence $x = -3$.", "-3", "weak"),
    ("Therefore $a+b=\\frac{13}{2}$.", "\\frac{13}{2}", "weak"),
    ("The area is $12\\pi$ square units.", "12\\pi", "weak"),
    ("The probability is 0.25.", "0.25", "weak"),
    ("The train arrives at 3:45.", "3:45", "weak"),
    ("| step | value |\n|---|---|\n| 1 | 12 |\n\n**Answer: 12**", "12", "announced"),
    ("| step | value |\n|---|---|\n| total | 36 |", "36", "weak"),
    ("```python\nprint(3)\n```\nThe answer is 9.", "9", "announced"),
    ("```\n\\boxed{3}\n```", "3", "boxed"),
    ("The answer is `42`.", "42", "announced"),
    ("The answer is **42**.", "42", "announced"),
    ("Thus, the answer is $x = 5$.", "x = 5", "announced"),
    ("The answer is approximately 3.14.", "approximately 3.14", "announced"),
    ("The answer is 3.", "3", "announced"),
    ("The answer is 3.5.", "3.5", "announced"),
    ("The answer is 12 cm.", "12 cm", "announced"),
    ("The answer is $\\frac{1}{2}$, not $\\frac{1}{3}$.", "\\frac{1}{2}", "announced"),
    ("The answer is not 5.", "", "none"),
    ("The answer is 5 or 6.", "5 or 6", "announced"),
    ("The answer is 5, 6, and 7.", "5, 6, and 7", "announced"),
    ("The answers are 2 and 3.", "2 and 3", "announced"),
    ("My final answer is 8", "8", "announced"),
    ("The final answer to the problem is 8.", "8", "announced"),
    ("Answer = 8", "8", "announced"),
    ("Final Answer\n\n8", "8", "announced"),
    ("# Answer\n8", "8", "announced"),
    ("\\boxed{\\textbf{(E)}\\ 30}", "\\textbf{(E)}\\ 30", "boxed"),
    ("$\\boxed{\\begin{cases} 1 \\\\ 2 \\end{cases}}$", "\\begin{cases} 1 \\\\ 2 \\end{cases}", "boxed"),
    ("$\\boxed{ \\{ x \\mid x > 0 \\} }$", "\\{ x \\mid x > 0 \\}", "boxed"),
    ("\\boxed{3}\\text{ or }\\boxed{4}", "3, 4", "boxed"),
    ("$\\boxed{12}$ cm", "12", "boxed"),
    ("答案是 $\\boxed{15}$。", "15", "boxed"),
    ("Die Antwort ist \\boxed{3{,}5}.", "3{,}5", "boxed"),
    ("The value is 5. Is it right? Yes, it is 5.", "5", "weak"),
    ("Let me know if you need more help! The answer is 6.", "6", "announced"),
    ("The answer is 6. Let me know if you have 2 more questions!", "6", "announced"),
    ("**The final answer is: 15 apples**", "15 apples", "announced"),
    ("The answer is 1,234.", "1,234", "announced"),
    ("The answer is -5.", "-5", "announced"),
    ("The answer is −5.", "−5", "announced"),
    ("The answer is 50%.", "50%", "announced"),
    ("Answer: a", "a", "announced"),
    ("Answer: Incorrect.", "Incorrect", "announced"),
    ("12 is not 13. So the answer is correct.", "", "none"),
    # amounts of money, and mathematics between delimiters
    (r"The answer is $\$18$.", r"\$18", "announced"),
    (r"The answer is $x = \$5$ per day.", r"x = \$5", "announced"),
    (r"The answer is \$18.", r"\$18", "announced"),
    (r"The answer is $\$$.", "", "none"),
    (r"The answer is $2\times$.", "", "none"),
    ("The answer is $18. She makes $18 every day.", "$18", "announced"),
    ("Final answer: $5 or $6", "$5 or $6", "announced"),
    ("The answer is $1,000 or $2,000.", "$1,000 or $2,000", "announced"),
    ("The final answer is $6, since $10 - $4 = $6.", "$6", "announced"),
    ("The answer is $10 - $4 = $6.", "$6", "announced"),
    ("The answer is $10-$4=$6.", "$6", "announced"),
    ("The answer is $10, not $5.", "$10", "announced"),
    ("The answer is $3$ and $-3$.", "3 and -3", "announced"),
    ("The answer is $A$ and $C$.", "A and C", "announced"),
    ("The answer is $A$, $B$, $C$.", "A, B, C", "announced"),
    ("The answer is $3$, 4, and $5$.", "3, 4, and 5", "announced"),
    (r"The answer is \(3\) and \(-3\).", "3 and -3", "announced"),
    (r"The answer is \(x = 3\), or \(x = -3\).", "x = 3, or x = -3", "announced"),
    ("The answer is $x = 1$, $y = 2$.", "x = 1, y = 2", "announced"),
    ("The answer is $3$:$4$.", "3:4", "announced"),
    ("The answer is $12$ cm$^2$.", "12 cm^2", "announced"),
    ("The answer is $3$ apples and $4$ oranges.", "3 apples and 4 oranges", "announced"),
    ("The answer is the $x$-axis: $x$", "", "none"),
    ("The answer is $x$-axis.", "x-axis", "announced"),
    ("The answer is $5$ when $x = 2$.", "5", "announced"),
    ("The answer is $5$, and hence $n = 5$.", "5", "announced"),
    ("The answer is $5$ (as $2 + 3 = 5$).", "5", "announced"),
    ("The answer is $i + 1$.", "i + 1", "announced"),
    ("The answer is i + 1.", "i + 1", "announced"),
    ("The answer is b + a.", "b + a", "announced"),
    # clauses with emphasis, factorials, semicolons and abbreviations
    ("The correct options are **A** and **C**.", "A and C", "announced"),
    ("**Answer: A** and **C**", "A and C", "announced"),
    ("The answer is x = **5**.", "x = 5", "announced"),
    ("The answer is 2**10.", "2**10", "announced"),
    ("Answer: I, III", "I, III", "announced"),
    ("The answer is I and III.", "I and III", "announced"),
    ("The answer is (I) and (II) only.", "(I) and (II) only", "announced"),
    ("The answer is I and nobody else.", "", "none"),
    ("The answer is 5! + 4!.", "5! + 4!", "announced"),
    ("Answer: (1; 2)", "(1; 2)", "announced"),
    ("The answer is 5; this is clear.", "5", "announced"),
    ("The answer is approx. 5.", "approx. 5", "announced"),
    ("The answer is Dr. Smith.", "Dr. Smith", "announced"),
    # numbers with all that belongs to them
    ("It is 10^5.", "10^5", "weak"),
    ("It equals 10⁵.", "10⁵", "weak"),
    (r"It equals 2\times 10^3.", r"2\times 10^3", "weak"),
    ("It equals 2 × 10^3 m.", "2 × 10^3 m", "weak"),
    ("It is 2**10.", "2**10", "weak"),
    ("It is **7** apples.", "7 apples", "weak"),
    ("It took 3 1/2 hours.", "3 1/2 hours", "weak"),
    ("It is 1½ hours.", "1½ hours", "weak"),
    ("It is ½.", "½", "weak"),
    ("The sum is 1 000.", "1 000", "weak"),
    (r"The sum is 12\,345\,678 people.", r"12\,345\,678 people", "weak"),
    (r"Total cost: $\$5 + \$6 = \$11$.", r"\$11", "weak"),
    (r"Total cost: $\$5 + \$6$.", r"\$5 + \$6", "weak"),
    ("She pays $5 + $6.", "5 + 6", "weak"),
    ("The answer is 5! = 120.", "120", "announced"),
    ("So it is 5! = 120.", "120", "weak"),
    ("It is 5!.", "5!", "weak"),
    ("So 3 times 4 is 12!", "12", "weak"),
    ("The area is 12π.", "12π", "weak"),
    (r"It is \frac{\sqrt{3}}{2}.", r"\frac{\sqrt{3}}{2}", "weak"),
    (r"It is 0.\overline{3}.", r"0.\overline{3}", "weak"),
    ("It is 777_8.", "777_8", "weak"),
    ("The ratio is 3:4.", "3:4", "weak"),
    ("The point is (3, 4).", "(3, 4)", "weak"),
    ("It costs (1,000).", "1,000", "weak"),
    ("It is 1/2 + 1/3.", "1/2 + 1/3", "weak"),
    ("It was on 2015-03-14.", "2015-03-14", "weak"),
    ("Step 1 - 5 apples", "5 apples", "weak"),
    ("* 5 apples", "5 apples", "weak"),
    # parts of terms are no values
    ("It is 3x + 2.", "", "none"),
    ("It is (x + 1)^2.", "", "none"),
    ("It is x^2.", "", "none"),
    ("We get x > 5.", "", "none"),
    # money in the last sentence
    ("So Janet makes $18 every day.", "18", "weak"),
    ("Janet makes 9 * $2 = $18 per day.", "18", "weak"),
]


@pytest.mark.parametrize(("text", "answer", "level"), FOUND)
def test_find_answer_returns_the_answer_and_its_level(text: str, answer: str, level: AnswerLevel) -> None:
    assert find_answer(text) == FoundAnswer(answer, level)


@pytest.mark.parametrize(
    ("text", "answer", "level"),
    [
        ("The answer is $57$.", "57", "announced"),
        ("The answer is **57**.", "57", "announced"),
        ("57.", "57", "weak"),
        ("**57**.", "57", "weak"),
        ("It is 57.", "It is 57.", "weak"),
        ("...", "...", "weak"),
        (" 1 2 3\n4 5 6 \n", "1 2 3\n4 5 6", "weak"),
        (r"so \boxed{NO}", "NO", "boxed"),
        ("Answer: 12", "12", "announced"),
        ("I add them.\nFinal answer:\n1 2 3\n4 5 6", "1 2 3\n4 5 6", "announced"),
        ("Steps.\nAnswer: an, cat, the", "an, cat, the", "announced"),
        ("Answer: the, cat, sat", "the, cat, sat", "announced"),
        ("I looked.\nAnswer: The cat sat on the mat.", "The cat sat on the mat", "announced"),
        ("So:\n**Answer:** I, II, III", "I, II, III", "announced"),
        ("So:\nAnswer = a b c", "a b c", "announced"),
        ("Sorted.\n## Answer\nall be cat", "all be cat", "announced"),
        ("Sorted.\nThe answer is an, cat, the.", "an, cat, the", "announced"),
        ("Sorted.\nFinal answer: not in the list", "not in the list", "announced"),
        ("It is 3.\nThe answer is found by counting them.", "It is 3.\nThe answer is found by counting them.", "weak"),
        ("Answer: 12\nAnswer: [your answer here]", "12", "announced"),
        ("Answer: 12\nAnswer: within the box below", "12", "announced"),
        (r"Answer: 12" "\nAnswer: put it in " r"\boxed{} at the end", "12", "announced"),
        ("<answer>57</answer>", "57", "announced"),
        ("The answer is 57.", "57", "announced"),
        ("**57**", "57", "weak"),
        ("$57$", "57", "weak"),
        ("  \n", "", "none"),
        (r"\boxed{(", "", "none"),
        (r"\boxed{1} and \boxed{(", "", "none"),
    ],
)
def test_a_puzzles_answer_is_what_a_mark_announces_or_the_text(text: str, answer: str, level: AnswerLevel) -> None:
    assert find_answer(text, "text") == FoundAnswer(answer, level)


@pytest.mark.parametrize(
    ("text", "kind", "answer"),
    [
        (r"\boxed{7} and then \boxed{8", "math", "7"),
        (r"\boxed 4", "math", ""),
        ("12 + 6 = 18", "math", ""),
        ("**Answer**: 12 is it", "math", "12 is it"),
        ("Answer: 12", "text", "Answer: 12"),
        ("\\boxed{(", "text", ""),
    ],
)
def test_runs_of_earlier_versions_keep_the_answers_of_their_rules(text: str, kind: AnswerKind, answer: str) -> None:
    assert find_answer(text, kind, rules=1).text == answer


def test_the_strongest_level_that_occurs() -> None:
    assert strongest_level(["none", "weak", "announced"]) == "announced"
    assert strongest_level(["none"]) == strongest_level([]) == "none"


@given(content=st.text(alphabet="ab1{}\\ ", max_size=20), before=st.text(max_size=20))
def test_extraction_never_fails_and_gives_balanced_text(content: str, before: str) -> None:
    found = find_answer(before + r"\boxed{" + content + "}")
    answer = found.text if found.level == "boxed" else ""
    depth, position = 0, 0
    while position < len(answer):
        if answer[position] == "\\":
            position += 2
            continue
        depth += (answer[position] == "{") - (answer[position] == "}")
        assert depth >= 0
        position += 1
    assert depth == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [("$12$", "12"), ("12.", "12"), ("a  b", "a b"), ("\uff11\uff12", "12"), (" x\n", "x"), ("$ 5 $.", "5")],
)
def test_what_normalises_to_the_same_text(first: str, second: str) -> None:
    assert equal_text(first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [("12", "21"), ("1/2", "0.5"), ("No", "NO"), ("1.5", "15"), ("10\u2075", "105"), ("x\u00b2", "x2")],
)
def test_what_stays_different_text(first: str, second: str) -> None:
    assert not equal_text(first, second)


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


#: Texts that would cost a careless pattern quadratic time.
DEGENERATE = [
    piece * (200_000 // len(piece))
    for piece in (
        *("\n", " ", "*", "$", "=", "(", "1", "1,", "the ", "so ", "a. ", "answer ", "answer\n", "answer:", "_*", "$*"),
        *("answer is $", "answer: $1$ and ", "\\$", "answer: \\(1\\) and \\(", "answer: $1$ 2, ", "**a** "),
        *(
            "1 ",
            "1 000 ",
            "1+",
            "1/",
            "1^",
            "\\frac{",
            "\\frac{1}{",
            "\\sqrt{1",
            "1:",
            "(1, ",
            "5!",
            "1½ ",
            "10^1 ",
            "1 x ",
            "-",
        ),
        *(
            "\\boxed\\frac",
            "\\boxed\\left(",
            "\\boxed\\begin{a}",
            "\\boxed\\sqrt{",
            "\\boxed\\frac1",
            "\\boxed 1x",
            "\\boxed{1} red ",
        ),
        *("\\boxed{", "\\boxed{}", "\\boxed{1}", "\\boxed{1} and ", "\\text{", "<answer>", ". answer is ", "1+1="),
    )
]


@pytest.mark.parametrize("text", ["answer" + " " * 200_000, "answer: " + "\t" * 200_000, *DEGENERATE])
@pytest.mark.parametrize("kind", ["math", "text"])
def test_a_degenerate_text_takes_no_longer_than_others(text: str, kind: AnswerKind) -> None:
    assert least_cpu_seconds(lambda: find_answer(text, kind), enough=1) < 1
