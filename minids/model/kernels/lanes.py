"""Sixteen float32 numbers as one value of a kernel: what stays in SIMD registers is written down.

LLVM turns a plain loop over arrays into SIMD code, but it keeps no small block of a matrix product
in registers over another loop: so each product is loaded, changed and stored again. With lanes the
block is a few local variables. Nothing depends on what LLVM finds out about arrays, neither time
nor bits.

    a = lanes(f32(0.0))
    for i in range(n):
        a = madd(x[i], load(y, i, 0), a)        # a += x[i] y[i, :16]
    store(z, 0, 0, a)                           # z[0, :16] = a
"""

from typing import Any

from minids.model.kernels.compiled import numba

LANES = 16          # two registers of AVX2, one of AVX-512, four of NEON

intrinsic: Any = lambda function: function      # without numba, where kernels do not run
if numba:
    from llvmlite import ir
    from numba import extending
    from numba.core import cgutils, types
    from numba.extending import models, register_model

    class LanesType(types.Type):
        def __init__(self) -> None:
            super().__init__(name="Lanes")

    @register_model(LanesType)
    class LanesModel(models.PrimitiveModel):
        def __init__(self, dmm: Any, fe_type: Any) -> None:
            super().__init__(dmm, fe_type, ir.VectorType(ir.FloatType(), LANES))

    intrinsic, lanes_type = extending.intrinsic, LanesType()


def address(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Where x[j, i:i + 16] lies; the first arguments of `load` and `store` are x, j and i."""
    x = context.make_array(signature.args[0])(context, builder, args[0])
    width = builder.extract_value(x.shape, 1)
    offset = builder.add(builder.mul(args[1], width), args[2])
    return builder.bitcast(builder.gep(x.data, [offset]),
                           ir.PointerType(ir.VectorType(ir.FloatType(), LANES)))


def broadcast(builder: Any, value: Any) -> Any:
    """Lanes as they are, and a float32 number in each of the lanes."""
    if isinstance(value.type, ir.VectorType):
        return value
    vector = ir.VectorType(ir.FloatType(), LANES)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), LANES),
                                                        [0] * LANES))


@intrinsic
def lanes(typing: Any, x: Any) -> Any:
    """16 times the same float32 number."""
    return lanes_type(x), lambda context, builder, signature, args: broadcast(builder, args[0])


@intrinsic
def load(typing: Any, x: Any, j: Any, i: Any) -> Any:
    """x[j, i:i + 16]; x: contiguous float32."""
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(address(context, builder, signature, args), align=4)

    return lanes_type(x, types.intp, types.intp), code


@intrinsic
def store(typing: Any, x: Any, j: Any, i: Any, value: Any) -> Any:
    """x[j, i:i + 16] = value."""
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[3], address(context, builder, signature, args), align=4)
        return context.get_dummy_value()

    return types.none(x, types.intp, types.intp, lanes_type), code


@intrinsic
def madd(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c; a may be a number."""
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = [broadcast(builder, value) for value in args]
        vector = vectors[0].type
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{LANES}f32")
        return builder.call(function, vectors)

    return lanes_type(a, b, c), code


@intrinsic
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """The larger of two, lane by lane; NaN where b is NaN."""
    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return lanes_type(a, b), code
