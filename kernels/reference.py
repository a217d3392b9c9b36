"""The sums that nbconv computes, as plain loops: readable, slow, and the oracle of every test.

Arrays have three spatial axes. `x` is (N, C, ...), `w` is (K, C / groups, ...), `y` is (N, K, ...). With `xp` the padded input,
`o` an output position, `r` a tap and `i` a padded input position, one group reads

    y[n,k,o]   = b[k] + sum_c sum_r  w[k,c,r] * xp[n, c, o * stride + r * dilation]
    dxp[n,c,i] = sum_k sum_{o,r : o * stride + r * dilation = i}  dy[n,k,o] * w[k,c,r]
    dw[k,c,r]  = sum_n sum_o  dy[n,k,o] * xp[n, c, o * stride + r * dilation]
    db[k]      = sum_n sum_o  dy[n,k,o]

`dy` counts as zero outside its array, as `x` does under zero padding, and these zeros take part in the products: an infinite
weight gives NaN there. Whether the zeros beyond `dy` meet an infinite weight is left open where a border is copied from the
input, and where there is one output. For complex arrays nothing is conjugated here: callers conjugate `w` or `xp`.
"""

from .jit import kernel
from .padding import source_index


@kernel
def pad(x, before, mode, xp):
    """Write `x` continued over its borders to `xp`, whose shape tells how wide the borders are."""
    for n in range(xp.shape[0]):
        for c in range(xp.shape[1]):
            for p0 in range(xp.shape[2]):
                i0 = source_index(p0 - before[0], x.shape[2], mode)
                for p1 in range(xp.shape[3]):
                    i1 = source_index(p1 - before[1], x.shape[3], mode)
                    for p2 in range(xp.shape[4]):
                        i2 = source_index(p2 - before[2], x.shape[4], mode)
                        inside = i0 >= 0 and i1 >= 0 and i2 >= 0
                        xp[n, c, p0, p1, p2] = x[n, c, i0, i1, i2] if inside else x.dtype.type(0)


@kernel
def unpad(dxp, before, mode, dx):
    """Adjoint of `pad`: add every padded cell of `dxp` onto the cell of `dx` that it was copied from."""
    dx[...] = 0
    for n in range(dxp.shape[0]):
        for c in range(dxp.shape[1]):
            for p0 in range(dxp.shape[2]):
                i0 = source_index(p0 - before[0], dx.shape[2], mode)
                for p1 in range(dxp.shape[3]):
                    i1 = source_index(p1 - before[1], dx.shape[3], mode)
                    for p2 in range(dxp.shape[4]):
                        i2 = source_index(p2 - before[2], dx.shape[4], mode)
                        if i0 >= 0 and i1 >= 0 and i2 >= 0:
                            dx[n, c, i0, i1, i2] += dxp[n, c, p0, p1, p2]


@kernel
def forward(xp, w, b, stride, dilation, groups, y):
    """The first sum."""
    C, K = w.shape[1], w.shape[0] // groups
    for n in range(y.shape[0]):
        for k in range(y.shape[1]):
            g = k // K
            for o0 in range(y.shape[2]):
                for o1 in range(y.shape[3]):
                    for o2 in range(y.shape[4]):
                        total = b[k]
                        for c in range(C):
                            for r0 in range(w.shape[2]):
                                for r1 in range(w.shape[3]):
                                    for r2 in range(w.shape[4]):
                                        p0 = o0 * stride[0] + r0 * dilation[0]
                                        p1 = o1 * stride[1] + r1 * dilation[1]
                                        p2 = o2 * stride[2] + r2 * dilation[2]
                                        total += w[k, c, r0, r1, r2] * xp[n, g * C + c, p0, p1, p2]
                        y[n, k, o0, o1, o2] = total


@kernel
def input_grad(dy, w, stride, dilation, groups, dxp):
    """The second sum, gathered: one padded input cell `i` at a time, over the taps that reach it."""
    C, K = w.shape[1], w.shape[0] // groups
    for n in range(dxp.shape[0]):
        for c in range(dxp.shape[1]):
            g = c // C
            for i0 in range(dxp.shape[2]):
                for i1 in range(dxp.shape[3]):
                    for i2 in range(dxp.shape[4]):
                        dxp[n, c, i0, i1, i2] = 0
                        for k in range(g * K, (g + 1) * K):
                            for r0 in range(w.shape[2]):
                                q0 = i0 - r0 * dilation[0]
                                for r1 in range(w.shape[3]):
                                    q1 = i1 - r1 * dilation[1]
                                    for r2 in range(w.shape[4]):
                                        q2 = i2 - r2 * dilation[2]
                                        if q0 % stride[0] == 0 and q1 % stride[1] == 0 and q2 % stride[2] == 0:
                                            o0, o1, o2 = q0 // stride[0], q1 // stride[1], q2 // stride[2]
                                            inside = 0 <= o0 < dy.shape[2] and 0 <= o1 < dy.shape[3] and 0 <= o2 < dy.shape[4]
                                            value = dy[n, k, o0, o1, o2] if inside else dy.dtype.type(0)
                                            dxp[n, c, i0, i1, i2] += value * w[k, c - g * C, r0, r1, r2]


@kernel
def weight_grad(dy, xp, stride, dilation, groups, dw):
    """The third sum."""
    C, K = dw.shape[1], dw.shape[0] // groups
    for k in range(dw.shape[0]):
        g = k // K
        for c in range(C):
            for r0 in range(dw.shape[2]):
                for r1 in range(dw.shape[3]):
                    for r2 in range(dw.shape[4]):
                        dw[k, c, r0, r1, r2] = 0
                        for n in range(dy.shape[0]):
                            for o0 in range(dy.shape[2]):
                                p0 = o0 * stride[0] + r0 * dilation[0]
                                for o1 in range(dy.shape[3]):
                                    p1 = o1 * stride[1] + r1 * dilation[1]
                                    for o2 in range(dy.shape[4]):
                                        p2 = o2 * stride[2] + r2 * dilation[2]
                                        dw[k, c, r0, r1, r2] += dy[n, k, o0, o1, o2] * xp[n, g * C + c, p0, p1, p2]


@kernel
def bias_grad(dy, db):
    """The fourth sum."""
    for k in range(dy.shape[1]):
        db[k] = 0
        for n in range(dy.shape[0]):
            for o0 in range(dy.shape[2]):
                for o1 in range(dy.shape[3]):
                    for o2 in range(dy.shape[4]):
                        db[k] += dy[n, k, o0, o1, o2]
