// Langevin dynamics of 16 replicas of one molecule side by side, one in each lane of the vector registers: bonds, angles,
// periodic torsions, all pairs (Coulomb, Lennard-Jones, GBSA-OBC2 with its surface term), constraints by SHAKE and
// RATTLE. Units are OpenMM's: nm, ps, amu, kJ/mol. Replicas come in groups as wide as a register; positions and
// velocities are (16 / W, atoms, 3, W). Nothing is kept of a pair that is far apart: reading it back from memory would
// take longer than computing it again.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <immintrin.h>
#include <vector>

#ifdef __AVX512F__
constexpr int W = 16;
#else
constexpr int W = 8;
#endif
typedef float V __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));

#define IN_EACH_LANE(name, expression)                   \
    static inline V name(V a) {                          \
        V r;                                             \
        for (int k = 0; k < W; k++) r[k] = (expression); \
        return r;                                        \
    }
IN_EACH_LANE(exponential, std::exp(a[k]))
IN_EACH_LANE(logarithm, std::log(a[k]))
IN_EACH_LANE(sine, std::sin(a[k]))
IN_EACH_LANE(cosine, std::cos(a[k]))
IN_EACH_LANE(arc_cosine, std::acos(a[k]))
IN_EACH_LANE(root, std::sqrt(a[k]))
static inline V arc_tangent(V y, V x) {
    V r;
    for (int k = 0; k < W; k++) r[k] = std::atan2(y[k], x[k]);
    return r;
}
static inline V all(float a) { return a - V{}; }
static inline V greater(V a, V b) { return a > b ? a : b; }
static inline V absolute(V a) { return greater(a, -a); }
static inline float greatest(V a) {
    float r = a[0];
    for (int k = 1; k < W; k++) r = a[k] > r ? a[k] : r;
    return r;
}

// The processor's estimates of 1/a and 1/sqrt(a), made exact to the last bits by one step of Newton's.
#if defined(__AVX512F__)
static inline V estimate(V a) { return (V)_mm512_rcp14_ps((__m512)a); }
static inline V root_estimate(V a) { return (V)_mm512_rsqrt14_ps((__m512)a); }
static inline bool any_below(V a, float limit) {
    return _mm512_cmp_ps_mask((__m512)a, _mm512_set1_ps(limit), _CMP_LT_OQ);
}
#elif defined(__AVX2__)
static inline V estimate(V a) { return (V)_mm256_rcp_ps((__m256)a); }
static inline V root_estimate(V a) { return (V)_mm256_rsqrt_ps((__m256)a); }
static inline bool any_below(V a, float limit) {
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, _mm256_set1_ps(limit), _CMP_LT_OQ));
}
#else
#error "lanes.cpp needs a processor with AVX2"
#endif
static inline V reciprocal(V a) {
    V y = estimate(a);
    return y * (2.0f - a * y);
}
static inline V inverse_root(V a) {
    V y = root_estimate(a);
    return y * (1.5f - 0.5f * a * y * y);
}
// exp(a) of a <= 0: two to the whole part by the exponent's bits, to the rest by its Taylor series.
static inline V decay_of(V a) {
    a = greater(a * 1.44269504f, all(-126.0f));
    V shifted = a + 12582912.0f;  // 1.5 * 2^23: the last bits are the nearest whole number
    asm("" : "+v"(shifted));      // which -ffast-math would cancel
    V f = a - (shifted - 12582912.0f);
    V p = 1.0f + f * (0.693147181f + f * (0.240226507f + f * (0.0555041087f + f * (0.00961812911f + f * 0.00133335581f))));
    return (V)((I)p + ((I)shifted << 23));
}

struct Vec {
    V x, y, z;
};
static inline Vec operator+(Vec a, Vec b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
static inline Vec operator-(Vec a, Vec b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
static inline Vec operator*(V s, Vec a) { return {s * a.x, s * a.y, s * a.z}; }
static inline void operator+=(Vec &a, Vec b) { a = a + b; }
static inline void operator-=(Vec &a, Vec b) { a = a - b; }
static inline V dot(Vec a, Vec b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
static inline Vec cross(Vec a, Vec b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

struct Molecule {  // the layout of lanes.py
    int n, n_bonds, n_angles, n_torsions, n_constraints;
    const int *bond, *angle, *torsion, *constraint;
    const float *bond_p, *angle_p, *torsion_p, *constraint_p;  // length, k; angle, k; periodicity, phase, k; distance
    const float *pair;  // (n, n, 3): Coulomb, repulsion (1/r^12) and dispersion (1/r^6)
    const float *mass, *charge, *radius, *scale;
    float solvent, surface;  // Coulomb's constant times the difference of 1/dielectric; energy of an area, times 4 pi
};

constexpr float OFFSET = 0.009f, PROBE = 0.14f;  // nm
constexpr float ALPHA = 1.0f, BETA = 0.8f, GAMMA = 4.85f;  // of OBC2

// How an atom descreens others: beyond FAR_FROM times its reduced and scaled radius s, a series in t = (s / r)^2 replaces
// the logarithm, to one part in a million. A neighbour takes 2 s^3 / r^4 (1/3 + 2/5 t + 3/7 t^2 + ...).
constexpr float FAR_FROM = 4.0f;
static inline V taken(V t) {
    return 1.0f / 3 + t * (2.0f / 5 + t * (3.0f / 7 + t * (4.0f / 9 + t * (5.0f / 11))));
}
static inline V taken_slope(V t) {  // minus half its derivative by r, over r, is 2 s^3 / r^6 times this
    return 2.0f / 3 + t * (6.0f / 5 + t * (12.0f / 7 + t * (20.0f / 9 + t * (30.0f / 11))));
}

struct Work {
    std::vector<uint8_t> near;     // of each pair: whether it is, in any lane
    std::vector<V> first, second;  // of each near pair: how it descreens its two atoms, the derivatives
    std::vector<V> born, inverse_born, chain, descreening, born_force;
    std::vector<Vec> force;
    std::vector<float> reduced, scaled, square, cube;  // radii of atoms; s^2 and 2 s^3
    explicit Work(const Molecule &m)
        : near(m.n * (m.n - 1) / 2), born(m.n), inverse_born(m.n), chain(m.n), descreening(m.n), born_force(m.n),
          force(m.n) {
        for (int i = 0; i < m.n; i++) {
            float r = m.radius[i] - OFFSET, s = m.scale[i] * r;
            reduced.push_back(r);
            scaled.push_back(s);
            square.push_back(s * s);
            cube.push_back(2 * s * s * s);
        }
    }
};

// What a neighbour at distance r takes from the solvent around an atom, and minus half the derivative, over r.
static inline V descreen(V r, V inverse, float atom, float neighbour, V &derivative) {
    V lower = 1.0f / greater(all(atom), absolute(r - neighbour)), upper = 1.0f / (r + neighbour);
    V l2 = lower * lower, u2 = upper * upper, ratio = logarithm(upper / lower), inverse2 = inverse * inverse;
    V term = lower - upper + 0.25f * r * (u2 - l2) + 0.5f * inverse * ratio +
             0.25f * neighbour * neighbour * inverse * (l2 - u2);
    term += atom < neighbour - r ? 2.0f * (1.0f / atom - lower) : V{};
    V slope = 0.125f * (1.0f + neighbour * neighbour * inverse2) * (l2 - u2) + 0.25f * ratio * inverse2;
    derivative = atom < r + neighbour ? slope * inverse : V{};
    return atom < r + neighbour ? term : V{};
}

static V bonded(const Molecule &m, const Vec *x, Vec *f) {
    V energy{};
    for (int k = 0; k < m.n_bonds; k++) {
        int a = m.bond[2 * k], b = m.bond[2 * k + 1];
        Vec d = x[b] - x[a];
        V r = root(dot(d, d)), stretch = r - m.bond_p[2 * k], pull = m.bond_p[2 * k + 1] * stretch;
        energy += 0.5f * pull * stretch;
        Vec g = (pull / r) * d;
        f[a] += g;
        f[b] -= g;
    }
    for (int k = 0; k < m.n_angles; k++) {
        int a = m.angle[3 * k], b = m.angle[3 * k + 1], c = m.angle[3 * k + 2];
        Vec u = x[b] - x[a], v = x[b] - x[c], normal = cross(u, v);
        V u2 = dot(u, u), v2 = dot(v, v), area = greater(root(dot(normal, normal)), all(1e-6f));
        V c_angle = -greater(-greater(dot(u, v) / root(u2 * v2), all(-1.0f)), all(-1.0f));
        V bend = arc_cosine(c_angle) - m.angle_p[2 * k], torque = m.angle_p[2 * k + 1] * bend;
        energy += 0.5f * torque * bend;
        Vec fa = (torque / (u2 * area)) * cross(u, normal), fc = (-torque / (v2 * area)) * cross(v, normal);
        f[a] += fa;
        f[c] += fc;
        f[b] -= fa + fc;
    }
    for (int k = 0; k < m.n_torsions;) {
        const int *t = m.torsion + 4 * k;
        Vec u = x[t[0]] - x[t[1]], axis = x[t[2]] - x[t[1]], v = x[t[2]] - x[t[3]];
        Vec p = cross(u, axis), q = cross(axis, v);
        V length2 = dot(axis, axis), length = root(length2);
        V angle = arc_tangent(dot(u, q) * length, dot(p, q)), slope{};
        for (; k < m.n_torsions && !std::memcmp(m.torsion + 4 * k, t, 4 * sizeof(int)); k++) {
            float times = m.torsion_p[3 * k], height = m.torsion_p[3 * k + 2];
            V phase = times * angle - m.torsion_p[3 * k + 1];
            slope -= height * times * sine(phase);
            energy += height * (1.0f + cosine(phase));
        }
        Vec fa = (-slope * length / dot(p, p)) * p, fd = (slope * length / dot(q, q)) * q;
        Vec shared = (dot(u, axis) / length2) * fa - (dot(v, axis) / length2) * fd;
        f[t[0]] += fa;
        f[t[1]] -= fa - shared;
        f[t[2]] -= fd + shared;
        f[t[3]] += fd;
    }
    return energy;
}

// What every atom's neighbours take from the solvent around it.
static void descreen_all(const Molecule &m, Work &w, const Vec *x) {
    std::fill(w.descreening.begin(), w.descreening.end(), V{});
    w.first.clear();
    w.second.clear();
    for (int i = 0, p = 0; i < m.n; i++) {
        float ri = w.reduced[i], si = w.scaled[i], qi = w.square[i], ci = w.cube[i];
        Vec xi = x[i];
        V sum{};
        for (int j = i + 1; j < m.n; j++, p++) {
            Vec d = x[j] - xi;
            V square = dot(d, d);
            float limit = FAR_FROM * FAR_FROM * std::fmax(qi, w.square[j]);
            bool near = any_below(square, limit);
            w.near[p] = near;
            if (__builtin_expect(near, 0)) {
                V inverse = inverse_root(square), r = square * inverse, first, second;
                sum += descreen(r, inverse, ri, w.scaled[j], first);
                w.descreening[j] += descreen(r, inverse, w.reduced[j], si, second);
                w.first.push_back(first);
                w.second.push_back(second);
            } else {
                V u = reciprocal(square), u2 = u * u;
                sum += (w.cube[j] * u2) * taken(w.square[j] * u);
                w.descreening[j] += (ci * u2) * taken(qi * u);
            }
        }
        w.descreening[i] += sum;
    }
}

// Born radii, their derivatives and what the energy of single atoms depends on them; returns that energy.
static V born_radii(const Molecule &m, Work &w) {
    V energy{};
    for (int i = 0; i < m.n; i++) {
        float r = w.reduced[i], full = m.radius[i], charge = m.charge[i];
        V psi = 0.5f * r * w.descreening[i], psi2 = psi * psi;
        V tanh = 1.0f - 2.0f / (exponential(2.0f * psi * (ALPHA - BETA * psi + GAMMA * psi2)) + 1.0f);
        V inverse = 1.0f / r - tanh / full, born = 1.0f / inverse;
        w.chain[i] = (1.0f - tanh * tanh) * (r / full) * (ALPHA - 2.0f * BETA * psi + 3.0f * GAMMA * psi2);
        V ratio = full * inverse, ratio3 = ratio * ratio * ratio;
        V surface = m.surface * (full + PROBE) * (full + PROBE) * ratio3 * ratio3;
        V self = -0.5f * m.solvent * charge * charge * inverse;
        energy += surface + self;
        w.born[i] = born;
        w.inverse_born[i] = inverse;
        w.born_force[i] = -(6.0f * surface + self) * inverse;
    }
    return energy;
}

// Coulomb, Lennard-Jones and solvent of all pairs at fixed Born radii, and the forces on these; returns the energy.
static V pairs(const Molecule &m, Work &w, const Vec *x, Vec *f) {
    V energy{};
    for (int i = 0; i < m.n; i++) {
        float charge = -m.solvent * m.charge[i];
        Vec xi = x[i], force{};
        V born = w.born[i], inverse_born = -0.25f * w.inverse_born[i], sum{};
        for (int j = i + 1; j < m.n; j++) {
            const float *of = m.pair + 3 * (i * m.n + j);
            Vec d = x[j] - xi;
            V square = dot(d, d), inverse = inverse_root(square), inverse2 = inverse * inverse;
            V inverse6 = inverse2 * inverse2 * inverse2;
            V coulomb = of[0] * inverse, dispersion = of[2] * inverse6, repulsion = of[1] * inverse6 * inverse6;
            V ratio = square * inverse_born * w.inverse_born[j], product = born * w.born[j], decay = decay_of(ratio);
            V screened = inverse_root(square + product * decay), screened2 = screened * screened;
            V term = (charge * m.charge[j]) * screened, by_square = term * screened2;
            energy += coulomb + repulsion - dispersion + term;
            V slope = (6.0f * dispersion - 12.0f * repulsion - coulomb) * inverse2 - by_square * (1.0f - 0.25f * decay);
            V by_product = by_square * decay * (0.5f * ratio - 0.5f);
            sum += by_product * w.born[j];
            w.born_force[j] += by_product * born;
            Vec g = slope * d;
            force += g;
            f[j] -= g;
        }
        w.born_force[i] += sum;
        f[i] += force;
    }
    return energy;
}

// Forces by the Born radii of all pairs.
static void chain_rule(const Molecule &m, Work &w, const Vec *x, Vec *f) {
    for (int i = 0; i < m.n; i++) w.born_force[i] *= w.born[i] * w.born[i] * w.chain[i];
    size_t known = 0;
    for (int i = 0, p = 0; i < m.n; i++) {
        float qi = w.square[i];
        Vec xi = x[i], force{};
        V by_i = -w.born_force[i];
        float ci = w.cube[i];
        for (int j = i + 1; j < m.n; j++, p++) {
            Vec d = x[j] - xi;
            V slope;
            if (__builtin_expect(w.near[p], 0)) {
                slope = by_i * w.first[known] - w.born_force[j] * w.second[known];
                known++;
            } else {
                V u = reciprocal(dot(d, d));
                slope = by_i * w.cube[j] * taken_slope(w.square[j] * u) - w.born_force[j] * ci * taken_slope(qi * u);
                slope *= u * u * u;
            }
            Vec g = slope * d;
            force += g;
            f[j] -= g;
        }
        f[i] += force;
    }
}

// Potential energy; forces into work.force.
static V potential(const Molecule &m, Work &w, const Vec *x) {
    Vec *f = w.force.data();
    std::fill(w.force.begin(), w.force.end(), Vec{});
    descreen_all(m, w, x);
    V energy = bonded(m, x, f) + born_radii(m, w);
    energy += pairs(m, w, x, f);
    chain_rule(m, w, x, f);
    return energy;
}

struct Random {  // xoshiro128++ (Blackman and Vigna) in every lane, normal numbers by Box and Muller
    U s[4];
    static U turned(U a, int k) { return (a << k) | (a >> (32 - k)); }
    U next() {
        U result = turned(s[0] + s[3], 7) + s[0], t = s[1] << 9;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = turned(s[3], 11);
        return result;
    }
    V uniform() { return (__builtin_convertvector(next() >> 8, V) + 0.5f) * 0x1p-24f; }
    void normal(V &a, V &b) {
        V r = root(-2.0f * logarithm(uniform())), t = 6.2831853f * uniform();
        a = r * cosine(t);
        b = r * sine(t);
    }
    void normal(std::vector<Vec> &out) {
        for (size_t k = 0; k < out.size(); k += 2) {
            Vec spare, &other = k + 1 < out.size() ? out[k + 1] : spare;
            normal(out[k].x, other.x);
            normal(out[k].y, other.y);
            normal(out[k].z, other.z);
        }
    }
};

static void constrain_velocities(const Molecule &m, const Vec *x, Vec *v) {
    for (int round = 0; round < 200; round++) {
        V worst{};
        for (int k = 0; k < m.n_constraints; k++) {
            int a = m.constraint[2 * k], b = m.constraint[2 * k + 1];
            float wa = 1 / m.mass[a], wb = 1 / m.mass[b];
            Vec d = x[b] - x[a];
            V along = dot(v[b] - v[a], d), impulse = along / (dot(d, d) * (wa + wb));
            worst = greater(worst, absolute(along) / m.constraint_p[k]);
            v[a] += (impulse * wa) * d;
            v[b] -= (impulse * wb) * d;
        }
        if (greatest(worst) < 1e-5f) return;
    }
}

static void constrain_positions(const Molecule &m, const Vec *old, Vec *x) {
    for (int round = 0; round < 200; round++) {
        V worst{};
        for (int k = 0; k < m.n_constraints; k++) {
            int a = m.constraint[2 * k], b = m.constraint[2 * k + 1];
            float wa = 1 / m.mass[a], wb = 1 / m.mass[b], square = m.constraint_p[k] * m.constraint_p[k];
            Vec d = x[b] - x[a], direction = old[b] - old[a];
            V excess = dot(d, d) - square, shift = excess / (2.0f * (wa + wb) * dot(d, direction));
            worst = greater(worst, absolute(excess) / square);
            x[a] += (shift * wa) * direction;
            x[b] -= (shift * wb) * direction;
        }
        if (greatest(worst) < 2e-5f) return;
    }
}

// LangevinMiddle (Zhang et al. 2019): kick, half a drift, friction and noise, half a drift.
static void run(const Molecule &m, Vec *x, Vec *v, Random &random, int steps, float dt, float friction, float kT) {
    Work w(m);
    std::vector<Vec> old(m.n), unconstrained(m.n), noise(m.n);
    float stay = std::exp(-friction * dt), width = std::sqrt(kT * (1 - stay * stay));
    for (int step = 0; step < steps; step++) {
        potential(m, w, x);
        for (int i = 0; i < m.n; i++) v[i] += all(dt / m.mass[i]) * w.force[i];
        constrain_velocities(m, x, v);
        random.normal(noise);
        for (int i = 0; i < m.n; i++) {
            old[i] = x[i];
            x[i] += all(0.5f * dt) * v[i];
            v[i] = all(stay) * v[i] + all(width / std::sqrt(m.mass[i])) * noise[i];
            x[i] += all(0.5f * dt) * v[i];
            unconstrained[i] = x[i];
        }
        constrain_positions(m, old.data(), x);
        for (int i = 0; i < m.n; i++) v[i] += all(1 / dt) * (x[i] - unconstrained[i]);
    }
}

extern "C" {  // each is given one group of replicas
int lanes_width() { return W; }

void lanes_potential(const Molecule *m, const float *positions, float *forces, float *energies) {
    Work w(*m);
    V energy = potential(*m, w, (const Vec *)positions);
    std::memcpy(forces, w.force.data(), sizeof(Vec) * m->n);
    std::memcpy(energies, &energy, sizeof energy);
}

void lanes_velocities(const Molecule *m, const float *positions, float *velocities, Random *random, float kT) {
    std::vector<Vec> noise(m->n);
    random->normal(noise);
    Vec *v = (Vec *)velocities;
    for (int i = 0; i < m->n; i++) v[i] = all(std::sqrt(kT / m->mass[i])) * noise[i];
    constrain_velocities(*m, (const Vec *)positions, v);
}

void lanes_run(const Molecule *m, float *positions, float *velocities, Random *random, int steps, float dt,
               float friction, float kT) {
    run(*m, (Vec *)positions, (Vec *)velocities, *random, steps, dt, friction, kT);
}
}
