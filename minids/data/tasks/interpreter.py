"""Runs the small programs that a model writes, safely: a subset of Python with its own limits.

Not in the report: it verifies the coding tasks, in place of the sandboxes that serve a large model.

A program is an expression in `x`, or one `def f(x):`. The language has integers, truth values and
flat lists of them; + - * // % **, comparisons, `in`, and / or / not, `a if c else b`, indices and
slices, comprehensions with one `for`, and the functions in FUNCTIONS; inside a `def` also
assignment, if, for, while, break, continue, pass and return. An accepted program means the same as
in Python. Python's own parser reads the text; nothing is ever compiled or given to Python to run.
"""

import ast
import operator
import re
from functools import lru_cache

MAX_STEPS = 10_000      # nodes visited and list elements touched, in one run
MAX_CHARS = 600         # length of a program
MAX_DEPTH = 40          # levels of the syntax tree
MAX_LIST = 1_000        # elements of a list
MAX_INT = 10**15        # magnitude of an integer

FUNCTIONS = {f.__name__: f for f in (abs, all, any, len, list, max, min, range, sorted, sum)}
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
             ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow}
# += and *= change a list in place.
IN_PLACE = OPERATORS | {ast.Add: operator.iadd, ast.Mult: operator.imul}
COMPARISONS = {ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt,
               ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
               ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b}
SIGNS = {ast.UAdd: operator.pos, ast.USub: operator.neg, ast.Not: operator.not_}
# No quotes, dots or braces, and so no strings, attributes or dicts.
FOREIGN = re.compile(r"[^A-Za-z0-9_ \n()\[\],:+\-*/%<>=!]")
LITERAL = re.compile(r"(?<![A-Za-z0-9_])[0-9]+[A-Za-z_]")       # 0x1f, 10j, 1e9, 1_000, 2if


class ProgramError(ValueError):
    """A program outside the language, or an error while it ran."""


def run(source: str, argument):
    """The value of the program at x = `argument`: an integer, a truth value or a list of them.

    `argument` may be such a value or a tuple, which the program sees as a list; it is not changed.
    Raises `ProgramError` for a program outside the language, for an error while it runs (a division
    by zero, an index out of range, ...) and for one that exceeds a limit above. Every run ends
    within some hundredths of a second.
    """
    try:
        tree = parse(source)
        interpreter = _Interpreter()
        argument = list(argument) if isinstance(argument, (list, tuple)) else argument
        if isinstance(tree, ast.Expr):
            result = interpreter.value(tree.value, {"x": argument})
        else:
            ended = interpreter.block(tree.body, {tree.args.args[0].arg: argument})
            if not isinstance(ended, _Returned):
                raise ProgramError("f ended without a return")
            result = ended.value
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, ProgramError):
            raise
        raise ProgramError(f"{type(error).__name__}: {error}") from None
    except RecursionError:
        raise ProgramError("the program is nested too deeply") from None
    if isinstance(result, range):
        raise ProgramError("expected a number or a list, found a range: "
                           "list(range(...)) makes it a list")
    return result


@lru_cache(maxsize=256)     # a verifier runs one program on many inputs
def parse(source: str) -> ast.Expr | ast.FunctionDef:
    """The syntax tree of a program. Raises `ProgramError` for anything else.

    Length and characters are checked before Python's parser reads the text.
    """
    source = source.strip()
    if not source or len(source) > MAX_CHARS:
        raise ProgramError(f"expected a program of 1 to {MAX_CHARS} characters, "
                           f"found {len(source)}")
    if match := FOREIGN.search(source) or LITERAL.search(source):
        raise ProgramError(f"{match.group()!r} is not in the language")
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or type(error).__name__
        raise ProgramError(f"not a program: {reason}") from None
    level = body
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        raise ProgramError(f"the program is nested deeper than {MAX_DEPTH} levels")
    match body:
        case [ast.Expr() as tree]:
            return tree
        case [ast.FunctionDef(name="f", returns=None, args=ast.arguments(
                posonlyargs=[], args=[ast.arg(annotation=None)], vararg=None, kwonlyargs=[],
                kwarg=None, defaults=[])) as tree]:
            return tree
    raise ProgramError("expected an expression in x, or one def f(x):")


class _Returned:
    """The value of a `return`, passed out through the blocks around it."""

    def __init__(self, value):
        self.value = value


class _Interpreter:
    """Evaluates a syntax tree and counts its steps. `names` holds the variables."""

    def __init__(self):
        self.steps_left = MAX_STEPS

    def spend(self, steps: int = 1) -> None:
        self.steps_left -= steps
        if self.steps_left < 0:
            raise ProgramError(f"the program took more than {MAX_STEPS} steps")

    def checked(self, value):
        """Return `value` if it is within the limits, and count the steps that it takes."""
        if isinstance(value, int):
            if abs(value) > MAX_INT:
                raise ProgramError("a number grew too large")
        elif len(value) > MAX_LIST:
            raise ProgramError(f"a list or range grew longer than {MAX_LIST}")
        elif isinstance(value, list):
            self.spend(len(value))
        return value

    def value(self, node: ast.expr, names: dict):
        """The value of an expression."""
        self.spend()
        match node:
            case ast.Name(id=name):
                if name not in names:
                    raise ProgramError(f"{name} has no value")
                return names[name]
            case ast.Constant(value=int() as value):
                return self.checked(value)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return self.binary(op, self.value(left, names), self.value(right, names), OPERATORS)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in SIGNS:
                return SIGNS[type(op)](self.value(operand, names))
            case ast.BoolOp(op=op, values=values):
                for part in values:
                    result = self.value(part, names)
                    # The first true value ends an `or`, the first false one an `and`.
                    if bool(result) == isinstance(op, ast.Or):
                        break
                return result
            case ast.Compare(left=left, ops=ops, comparators=others):
                left = self.value(left, names)
                for op, other in zip(ops, others, strict=True):
                    right = self.value(other, names)
                    if not self.compare(op, left, right):
                        return False
                    left = right
                return True
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.value(body if self.value(test, names) else orelse, names)
            case ast.List(elts=elements):
                return self.checked([self.flat(self.value(e, names)) for e in elements])
            case ast.ListComp(generators=[clause]):
                return self.checked(list(self.elements(node, clause, names)))
            case ast.Subscript(value=items, slice=ast.Slice(lower=lower, upper=upper, step=step)):
                items = self.value(items, names)
                bounds = [None if bound is None else self.value(bound, names)
                          for bound in (lower, upper, step)]
                return self.checked(items[slice(*bounds)])
            case ast.Subscript(value=items, slice=index):
                return self.value(items, names)[self.value(index, names)]
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) \
                    if name in FUNCTIONS and name not in names:
                return self.call(FUNCTIONS[name], arguments, names)
        raise ProgramError(f"{ast.unparse(node)[:40]!r} is not in the language")

    def binary(self, op: ast.operator, left, right, operators: dict):
        """`left op right`, if the result cannot be too large to compute."""
        numbers = isinstance(left, int) and isinstance(right, int)
        if isinstance(op, ast.Pow):
            if not numbers or not 0 <= right <= 50 or abs(left) ** right > MAX_INT:
                raise ProgramError("expected a power that is a whole number, and not too large")
        if isinstance(op, ast.Mult) and not numbers:
            size = 0
            if isinstance(right, int):
                size = len(left) * right
            elif isinstance(left, int):
                size = left * len(right)
            if size > MAX_LIST:
                raise ProgramError(f"a list grew longer than {MAX_LIST}")
        return self.checked(operators[type(op)](left, right))

    def compare(self, op: ast.cmpop, left, right) -> bool:
        if type(op) not in COMPARISONS:
            raise ProgramError("`is` is not in the language")
        for side in (left, right):
            self.spend(0 if isinstance(side, int) else len(side))
        return COMPARISONS[type(op)](left, right)

    def flat(self, value) -> int:
        if not isinstance(value, int):
            raise ProgramError("a list holds numbers only")
        return value

    def elements(self, node: ast.ListComp | ast.GeneratorExp, clause: ast.comprehension,
                 names: dict):
        """Yield the elements of a comprehension."""
        for item in self.value(clause.iter, names):
            self.spend()
            inner = names | {self.target(clause.target): item}
            if all(self.value(test, inner) for test in clause.ifs):
                yield self.flat(self.value(node.elt, inner))

    def call(self, function, arguments: list, names: dict):
        match arguments:
            case [ast.GeneratorExp(generators=[clause]) as node] \
                    if function not in (len, range, abs):
                return self.checked(function(self.elements(node, clause, names)))
        arguments = [self.value(a, names) for a in arguments]
        for argument in arguments:
            self.spend(0 if isinstance(argument, int) else len(argument))
        return self.checked(function(*arguments))

    def target(self, node: ast.expr) -> str:
        if not isinstance(node, ast.Name):
            raise ProgramError("expected a single name to assign to")
        return node.id

    def block(self, body: list, names: dict):
        """Run statements; returns what ended them: a _Returned, "break", "continue", or None."""
        for node in body:
            self.spend()
            ended = None
            match node:
                case ast.Assign(targets=targets, value=value):
                    value = self.value(value, names)
                    names.update({self.target(t): value for t in targets})
                case ast.AugAssign(target=target, op=op, value=value) if type(op) in OPERATORS:
                    name = self.target(target)
                    left, right = self.value(target, names), self.value(value, names)
                    names[name] = self.binary(op, left, right, IN_PLACE)
                case ast.If(test=test, body=then, orelse=orelse):
                    ended = self.block(then if self.value(test, names) else orelse, names)
                case ast.For(target=target, iter=items, body=inside, orelse=[]):
                    for names[self.target(target)] in self.value(items, names):
                        self.spend()
                        ended = self.block(inside, names)
                        if ended is not None and ended != "continue":
                            break
                    ended = ended if isinstance(ended, _Returned) else None
                case ast.While(test=test, body=inside, orelse=[]):
                    while self.value(test, names):
                        ended = self.block(inside, names)
                        if ended is not None and ended != "continue":
                            break
                    ended = ended if isinstance(ended, _Returned) else None
                case ast.Return(value=ast.expr() as value):
                    ended = _Returned(self.value(value, names))
                case ast.Break():
                    ended = "break"
                case ast.Continue():
                    ended = "continue"
                case ast.Pass():
                    pass
                case _:
                    first_line = ast.unparse(node).splitlines()[0]
                    raise ProgramError(f"{first_line[:40]!r} is not in the language")
            if ended is not None:
                return ended
        return None
