"""Residual blocks with an identity shortcut: x + f(x), which can be left out as a whole."""

import itertools
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jax.extend import core

from prunejax import jaxprs, names
from prunejax.shrinking import executor
from prunejax.shrinking.structure import Structure

PRODUCTS = ("conv_general_dilated", "dot_general")


class Block(NamedTuple):
    """A residual block.

    Attributes:
      name: the module that all of its variables belong to, such as "BasicBlock_2"; where that holds
        others too, the path of the block's first variable. It stays when other blocks have gone.
      shortcut, branch, output: the x, the f(x) and the x + f(x) of the program.
      variables: paths of what the network does not need without f, such as
        "params/BasicBlock_2/Conv_0/kernel".
      last: path of the last weight of f among the parameters, whose units score the block.
    """

    name: str
    shortcut: core.Var
    branch: core.Var
    output: core.Var
    variables: tuple[str, ...]
    last: str


def blocks(traced: Structure) -> list[Block]:
    """The network's residual blocks with identity shortcuts, in their order.

    A sum of two activations, one of which is made from the other by at least one layer.
    Blocks whose shortcut is a layer too (they change the shape) are none of these.

    Raises:
      ValueError: a block inside another one, without a name of its own.
    """
    program = traced.program
    maker = {out: eqn for eqn in program.eqns for out in eqn.outvars}
    paths = {variable: path for path, variable in traced.variables.items()}
    reads_image = _after(program, traced.images)
    found = []
    for eqn in program.eqns:
        if eqn.primitive.name not in ("add", "add_any"):
            continue
        if not all(jaxprs.is_variable(a) and a in reads_image for a in eqn.invars):
            continue
        for shortcut, branch in (eqn.invars, eqn.invars[::-1]):
            between = _between(shortcut, branch, maker, traced.images)
            if not between:
                continue
            logits, without = program.outputs[:1], {eqn.outvars[0]: shortcut}
            with_it, without_it = (
                {a for e in eqns for a in filter(jaxprs.is_variable, e.invars)}
                for eqns in (between, executor.needed(program, logits, without))
            )
            own = [v for v in paths if v in with_it - without_it]
            if any(variable.aval.ndim >= 2 for variable in own):
                variables = tuple(paths[variable] for variable in own)
                name = _name(variables, traced.variables)
                last = _last_weight(program, between, traced, own)
                found.append(Block(name, shortcut, branch, eqn.outvars[0], variables, last))
    found = _with_names_from_before(traced, found)
    for block, next_one in itertools.combinations(found, 2):
        if block.name == next_one.name:
            raise ValueError(
                f"apply_fn adds {block.last!r} and {next_one.last!r} to their inputs, one inside "
                f"the other, both in {block.name!r}; give each residual block a module of its own."
            )
    return found


def chosen(traced: Structure, wanted: Sequence[str]) -> list[Block]:
    """The blocks of these names.

    Raises:
      ValueError: a name that no block has.
    """
    if not wanted:
        return []
    known = {block.name: block for block in blocks(traced)}
    return [names.lookup("residual block", name, known) for name in wanted]


def _after(program: jaxprs.Flat, start: core.Var) -> set[core.Var]:
    """What depends on a variable."""
    depends = {start}
    for eqn in program.eqns:
        if depends.intersection(filter(jaxprs.is_variable, eqn.invars)):
            depends.update(eqn.outvars)
    return depends


def _between(start, end, maker, images) -> list[core.JaxprEqn]:
    """All equations that make `end` out of `start`; none if it is not made of `start` alone."""
    seen, todo, eqns = set(), [end], []
    while todo:
        variable = todo.pop()
        if variable is images:
            return []
        if variable in seen or variable is start or variable not in maker:
            seen.add(variable)
            continue
        eqn = maker[variable]
        seen.update(eqn.outvars)
        eqns.append(eqn)
        todo += filter(jaxprs.is_variable, eqn.invars)
    return eqns if start in seen else []


def _last_weight(program, between, traced, own) -> str:
    """Of the layers in a branch the one that is applied last."""
    inputs = {variable: path for path, variable in traced.variables.items()}
    sources = {variable: frozenset([path]) for variable, path in inputs.items()}
    made_of = jaxprs.made_of(program, sources | {traced.images: frozenset([""])})
    weights = [inputs[variable] for variable in own if variable.aval.ndim >= 2]
    found = weights[-1]  # where no product tells
    for eqn in program.eqns:
        if eqn not in between or eqn.primitive.name not in PRODUCTS:
            continue
        for atom in filter(jaxprs.is_variable, eqn.invars):
            read = made_of.get(atom, frozenset())
            if "" not in read:
                found = next((path for path in weights if path in read), found)
    return found.removeprefix("params/")


def _with_names_from_before(traced: Structure, found: Sequence[Block]) -> list[Block]:
    """The blocks under the names that they had in the network that had lost none."""
    if traced.before is None:
        return list(found)
    left = set(traced.variables)
    names_of = {frozenset(left.intersection(b.variables)): b.name for b in blocks(traced.before)}
    return [b._replace(name=names_of.get(frozenset(b.variables), b.name)) for b in found]


def _name(variables: Sequence[str], every: Iterable[str]) -> str:
    """See `Block`. Told by the parameters alone, for training reads other statistics."""
    own, every = (
        [path.removeprefix("params/") for path in paths if path.startswith("params/")]
        for paths in (variables, every)
    )
    module = os.path.commonpath(own)
    inside = {path for path in every if f"{path}/".startswith(f"{module}/")}
    return module if module and inside == set(own) else own[0]
