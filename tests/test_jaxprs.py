"""A flattened function computes what the function does."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from prunejax import jaxprs

CAPTURED = np.arange(4.0, dtype=np.float32)


@jax.jit
def scaled(x, factor):
    return factor * x + CAPTURED


def network(x):
    first = nn.relu(scaled(x, 2.0))
    second = jax.checkpoint(lambda y: jnp.sin(scaled(y, 3.0)))(first)  # called a second time
    _, sums = jax.lax.scan(lambda carry, row: (carry + row, carry), jnp.zeros(4), second)
    return {"sums": sums, "mean": nn.softmax(second).mean(axis=0)}


def evaluated(program, *args):
    values = {**program.constants, **dict(zip(program.inputs, args, strict=True))}

    def read(atom):
        return values[atom] if jaxprs.is_variable(atom) else atom.val

    for eqn in program.eqns:
        outputs = jaxprs.evaluate(eqn, [read(atom) for atom in eqn.invars])
        values.update(zip(eqn.outvars, outputs, strict=True))
    return jax.tree.unflatten(program.structure, [read(atom) for atom in program.outputs])


def test_the_flat_program_computes_the_same_and_calls_nothing():
    x = jax.random.normal(jax.random.key(0), (3, 4))
    program = jaxprs.flat(network, x)
    expected, found = network(x), evaluated(program, x)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-6)
    names = {eqn.primitive.name for eqn in program.eqns}
    assert "scan" in names
    assert not names & {"jit", "pjit", "custom_jvp_call", "checkpoint", "remat2", "closed_call"}
    assigned = [out for eqn in program.eqns for out in eqn.outvars]
    assert len(assigned) == len(set(assigned))


def test_reductions_by_a_function_of_their_own_are_one_equation():
    """They run it on pairs of numbers: its program is no call on the arrays."""

    def function(x):
        pooled = nn.pooling.pool(x, -jnp.inf, jnp.logaddexp, (2, 2), (1, 1), "VALID")
        return jax.lax.reduce(pooled, jnp.float32(0), lambda a, b: a * b + b, (1, 2))

    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 2))
    program = jaxprs.flat(function, x)
    assert [eqn.primitive.name for eqn in program.eqns] == ["reduce_window", "reduce"]
    np.testing.assert_allclose(evaluated(program, x), function(x), rtol=1e-6)


def test_parameters_of_an_equation_can_be_changed():
    program = jaxprs.flat(lambda x: x.reshape(2, 6), jnp.zeros((3, 4)))
    (eqn,) = program.eqns
    smaller = jnp.arange(8.0).reshape(2, 4)
    (found,) = jaxprs.evaluate(eqn, [smaller], new_sizes=(2, 4))
    np.testing.assert_array_equal(found, smaller)


def test_what_starts_with_a_number_is_no_name_and_what_is_made_of_names_is_told():
    def function(w, v, x):
        scaled = (w - w.mean(axis=0)) / (jnp.linspace(0.0, 1.0, 3) + w.std(axis=0))
        return x @ jnp.concatenate([scaled, jnp.full((2, 3), 0.5) * v])

    arguments = (jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros((5, 4)))
    program = jaxprs.flat(function, *arguments)
    names = dict(zip(program.inputs, "wvx", strict=True))
    made_of = jaxprs.made_of(program, {v: frozenset(name) for v, name in names.items()})
    (product,) = (eqn for eqn in program.eqns if eqn.primitive.name == "dot_general")
    assert [made_of[atom] for atom in product.invars] == [{"x"}, {"w", "v"}]
    assert made_of[product.outvars[0]] == {"w", "v", "x"}
    # Not through a difference.
    sources = {v: frozenset(name) for v, name in names.items()}
    through = ("concatenate", "mul", "div")
    assert jaxprs.made_of(program, sources, through)[product.invars[1]] == {"v"}
