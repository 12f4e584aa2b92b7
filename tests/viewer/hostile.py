"""Two hundred texts that try to be more than text."""

from __future__ import annotations

from itertools import product

_SCRIPTS = (
    "<script>PWN</script>",
    "<ScRiPt >PWN</sCrIpT\t>",
    "</script><script>PWN</script>",
    "</script\n><script>PWN",
    "<scr<script>ipt>PWN</scr</script>ipt>",
    "<script/src='data:text/javascript,PWN'></script>",
    "<svg onload=PWN>",
    "<svg><script>PWN</script></svg>",
    "<img src=x onerror=PWN>",
    "<img src=//example.org/x.png>",
    "<iframe srcdoc='<script>PWN</script>'></iframe>",
    "<object data='javascript:PWN'></object>",
    "<a href='javascript:PWN'>x</a>",
    "<form action='javascript:PWN'><button>x</button></form>",
    "<body onload=PWN>",
    "<details open ontoggle=PWN>",
    "<style>@import 'https://example.org/x.css';*{display:none}</style>",
    "<link rel=stylesheet href=https://example.org/x.css>",
    "<meta http-equiv=refresh content='0;url=https://example.org/'>",
    "<base href=https://example.org/>",
    "<template><script>PWN</script></template>",
    "<math><mtext><script>PWN</script></mtext></math>",
    "<!--<script>PWN</script>-->",
    "<!--<script>",
    "<![CDATA[<script>PWN</script>]]>",
    "<noscript><p title='</noscript><img src=x onerror=PWN>'>",
    "<x style='behavior:url(x)' onclick=PWN>",
    "<input autofocus onfocus=PWN>",
    "<video><source onerror=PWN></video>",
    "<marquee onstart=PWN>",
)
_OTHERS = (
    "${PWN} {{PWN}} {%PWN%} <%= PWN %> #{PWN} `${PWN}`",
    "[x](javascript:PWN) ![x](https://example.org/x.png) <javascript:PWN>",
    "\\(\\href{javascript:PWN}{x}\\) $\\includegraphics{https://example.org/x.png}$",
    '$\\class{x" onclick=PWN}{y}$ \\[\\html{<img src=x onerror=PWN>}\\]',
    "\\(\\def\\x{\\x\\x}\\x\\)",
    "'\"><img src=x onerror=PWN>",
    "';PWN;'",
    '"};PWN;{"',
    "\\u003cscript\\u003ePWN\\u003c/script\\u003e",
    "&lt;script&gt;PWN&lt;/script&gt; &#60;script&#62;",
    "%3Cscript%3EPWN%3C/script%3E",
    "+ADw-script+AD4-PWN+ADw-/script+AD4-",
    "\u202eevil\u202c \u2066left\u2069 \u2067right \u202d\u202e unclosed",
    "\u061c\u200e\u200f\u200b\u200d\ufeff zero widths",
    "\x00\x01\x02\x1b[31mred\x1b[0m\x1b]0;title\x07\x7f\x80\x9b31m",
    "\r\rcarriage\r\nreturns\x0b\x0c\x85\u2028\u2029",
    "BROKEN",
    "BROKEN<script>PWN</script>BROKEN",
    "\ud7ff\ue000\ufffd\U0010ffff",
    "العربية עברית abc \u202e<script>PWN</script>",
    "e\u0301" * 50 + "\u0300" * 300,
    "<" * 500,
    "</" * 300 + "script" * 100,
    " \n" * 200,
    "\t" * 200 + "x",
    "__proto__ constructor toString hasOwnProperty",
    "$" * 300,
    "\\" * 301,
    "{" * 300,
    "]]>" * 50,
)
#: The script in place of PWN in the texts. No page may run it.
PWN = "window.PWNED=1;alert(1)"
#: Put in the file's bytes in place of BROKEN: half a surrogate pair, which only an escape can smuggle in.
HALF = "\\ud83d"


def texts() -> list[str]:
    """200 texts, a megabyte line among them; BROKEN stands for half a character."""
    frames = ("{}", "so {} it</think>\\boxed{{1}}", "\n{}\n\n</script>{}<!--</think>{}")
    found = [
        frame.replace("{{", "{").replace("}}", "}").replace("{}", text)
        for text, frame in product((*_SCRIPTS, *_OTHERS), frames)
    ]
    found += ["x" * 1_000_000, "<b>" * 300_000 + "</think>", "a\u202e" * 20_000, "\n" * 50_000]
    while len(found) < 200:
        index = len(found)
        found.append(f"{_SCRIPTS[index % 30]}\u202e{_OTHERS[index % 29]}{_SCRIPTS[(index * 7) % 30]}")
    return [text.replace("PWN", PWN) for text in found]
