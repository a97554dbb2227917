// GELU by its two factors, of which one is also its slope's:
//
//     gelu(z) = z * Phi(z),  Phi(z) = (1 + erf(z / sqrt(2))) / 2
//
// Phi(z) - 1/2 and the slope of GELU less 1/2 are odd. Each is z times a polynomial in 2 (z / end)^2 - 1, fitted for the
// least largest error: 1.3e-7 and 1e-6 for fp32, 2e-5 and 5e-5 for bf16. Behind the end both stay what they are there.

#define END 5.5f
#define TERMS 15
#define BF16_END 4.5f
#define BF16_PHI_TERMS 9
#define BF16_SLOPE_TERMS 10

static const float phi_terms[TERMS] = {
    1.285519366e-01f, -6.417247506e-02f, 4.773698974e-02f, -3.878726677e-02f, 3.208174111e-02f,
    -2.611246919e-02f, 2.028798234e-02f, -1.467136375e-02f, 1.046861779e-02f, -7.674673945e-03f,
    4.236386270e-03f, -1.229398022e-03f, 1.023837792e-03f, -1.368830339e-03f, 5.380801440e-04f};
static const float slope_terms[TERMS] = {
    1.287592834e-01f, -6.574300972e-02f, 5.365795009e-02f, -5.361003059e-02f, 6.042002723e-02f,
    -7.020130956e-02f, 7.378216577e-02f, -6.607295441e-02f, 6.553999885e-02f, -7.091206406e-02f,
    4.174915609e-02f, -3.060658006e-03f, 1.026218363e-02f, -2.388516712e-02f, 1.022377379e-02f};
static const float bf16_phi_terms[BF16_PHI_TERMS] = {
    1.569027650e-01f, -7.714133786e-02f, 5.476881277e-02f, -4.090842197e-02f, 2.806927011e-02f,
    -1.578709629e-02f, 1.112520803e-02f, -1.003964046e-02f, 4.121551792e-03f};
static const float bf16_slope_terms[BF16_SLOPE_TERMS] = {
    1.594457562e-01f, -8.992300134e-02f, 8.618592640e-02f, -9.536765139e-02f, 1.050389786e-01f,
    -8.775819276e-02f, 4.773264916e-02f, -4.548345917e-02f, 5.596707757e-02f, -2.472344536e-02f};

INLINE lanes half_and_odd(lanes z, const float end, const float *terms, const int count) {
    z = clamped(z, end);
    lanes s = z * z * (2 / (end * end)) - 1, value = s * terms[count - 1] + terms[count - 2];
#pragma GCC unroll 16
    for (int i = count - 3; i >= 0; i--) value = value * s + terms[i];
    return value * z + 0.5f;
}

INLINE lanes phi(lanes z, const int is_bf16) {
    return is_bf16 ? half_and_odd(z, BF16_END, bf16_phi_terms, BF16_PHI_TERMS)
                   : half_and_odd(z, END, phi_terms, TERMS);
}

INLINE lanes slope(lanes z, const int is_bf16) {
    return is_bf16 ? half_and_odd(z, BF16_END, bf16_slope_terms, BF16_SLOPE_TERMS)
                   : half_and_odd(z, END, slope_terms, TERMS);
}

// GELU of four vectors at once, since the steps of one polynomial wait for each other.
INLINE void gelus(const lanes *z, lanes *values, const int is_bf16) {
    const float end = is_bf16 ? BF16_END : END, *terms = is_bf16 ? bf16_phi_terms : phi_terms;
    const int count = is_bf16 ? BF16_PHI_TERMS : TERMS;
    lanes inside[4], s[4], p[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        inside[v] = clamped(z[v], end);
        s[v] = inside[v] * inside[v] * (2 / (end * end)) - 1;
        p[v] = s[v] * terms[count - 1] + terms[count - 2];
    }
#pragma GCC unroll 16
    for (int i = count - 3; i >= 0; i--)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) p[v] = p[v] * s[v] + terms[i];
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) values[v] = z[v] * (p[v] * inside[v] + 0.5f);
}

// The same, and its slope.
INLINE void gelus_and_slopes(const lanes *z, lanes *values, lanes *slopes, const int is_bf16) {
    const float end = is_bf16 ? BF16_END : END;
    const float *of_phi = is_bf16 ? bf16_phi_terms : phi_terms, *of_slope = is_bf16 ? bf16_slope_terms : slope_terms;
    const int phi_count = is_bf16 ? BF16_PHI_TERMS : TERMS, slope_count = is_bf16 ? BF16_SLOPE_TERMS : TERMS;
    lanes inside[4], s[4], p[4], q[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        inside[v] = clamped(z[v], end);
        s[v] = inside[v] * inside[v] * (2 / (end * end)) - 1;
        p[v] = (lanes){0} + of_phi[phi_count - 1];
        q[v] = (lanes){0} + of_slope[slope_count - 1];
    }
#pragma GCC unroll 16
    for (int i = slope_count - 2; i >= 0; i--)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            if (i < phi_count - 1) p[v] = p[v] * s[v] + of_phi[i];
            q[v] = q[v] * s[v] + of_slope[i];
        }
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
        values[v] = z[v] * (p[v] * inside[v] + 0.5f);
        slopes[v] = q[v] * inside[v] + 0.5f;
    }
}
