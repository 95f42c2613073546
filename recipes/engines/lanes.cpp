// Langevin dynamics of 16 replicas of one molecule side by side, one in each lane of a vector register: bonds, angles,
// periodic torsions, all pairs (Coulomb, Lennard-Jones, GBSA-OBC2 with its surface term), constraints by SHAKE and
// RATTLE. Units are OpenMM's: nm, ps, amu, kJ/mol. Arrays of positions and velocities are (atoms, 3, lanes).
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

constexpr int W = 16;
typedef float V __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));

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

static inline float reduced(const Molecule &m, int i) { return m.radius[i] - OFFSET; }

struct Work {
    std::vector<V> square, slope, first, second;  // of each pair: r^2, (dE/dr)/r, and how it descreens its two atoms
    std::vector<V> born, chain, descreening, born_force;
    std::vector<Vec> force;
    explicit Work(int n)
        : square(n * (n - 1) / 2), slope(square), first(square), second(square), born(n), chain(n), descreening(n),
          born_force(n), force(n) {}
};

// What a neighbour at distance r takes from the solvent around an atom, and the derivative, over r.
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

// Potential energy; forces into work.force.
static V potential(const Molecule &m, Work &w, const Vec *x) {
    int n = m.n;
    Vec *f = w.force.data();
    std::fill(w.force.begin(), w.force.end(), Vec{});
    std::fill(w.descreening.begin(), w.descreening.end(), V{});
    V energy = bonded(m, x, f);
    for (int i = 0, p = 0; i < n; i++) {
        float ri = reduced(m, i), si = m.scale[i] * ri;
        V sum{};
        for (int j = i + 1; j < n; j++, p++) {
            float rj = reduced(m, j), sj = m.scale[j] * rj;
            const float *of = m.pair + 3 * (i * n + j);
            Vec d = x[j] - x[i];
            V square = dot(d, d), inverse = 1.0f / root(square), inverse2 = inverse * inverse;
            V inverse6 = inverse2 * inverse2 * inverse2, r = square * inverse;
            V coulomb = of[0] * inverse, repulsion = of[1] * inverse6 * inverse6, dispersion = of[2] * inverse6;
            energy += coulomb + repulsion - dispersion;
            w.slope[p] = -(coulomb + 12.0f * repulsion - 6.0f * dispersion) * inverse2;
            w.square[p] = square;
            sum += descreen(r, inverse, ri, sj, w.first[p]);
            w.descreening[j] += descreen(r, inverse, rj, si, w.second[p]);
        }
        w.descreening[i] += sum;
    }
    for (int i = 0; i < n; i++) {
        float r = reduced(m, i), full = m.radius[i], charge = m.charge[i];
        V psi = 0.5f * r * w.descreening[i], psi2 = psi * psi;
        V tanh = 1.0f - 2.0f / (exponential(2.0f * psi * (ALPHA - BETA * psi + GAMMA * psi2)) + 1.0f);
        V born = 1.0f / (1.0f / r - tanh / full);
        w.chain[i] = (1.0f - tanh * tanh) * (r / full) * (ALPHA - 2.0f * BETA * psi + 3.0f * GAMMA * psi2);
        V ratio = full / born, ratio3 = ratio * ratio * ratio;
        V surface = m.surface * (full + PROBE) * (full + PROBE) * ratio3 * ratio3;
        V self = -0.5f * m.solvent * charge * charge / born;
        energy += surface + self;
        w.born[i] = born;
        w.born_force[i] = -(6.0f * surface + self) / born;
    }
    for (int i = 0, p = 0; i < n; i++) {
        float charge = -m.solvent * m.charge[i];
        V born = w.born[i], sum{};
        for (int j = i + 1; j < n; j++, p++) {
            V product = born * w.born[j], ratio = 0.25f * w.square[p] / product, decay = exponential(-ratio);
            V inverse = 1.0f / root(w.square[p] + product * decay), inverse2 = inverse * inverse;
            V term = charge * m.charge[j] * inverse;
            energy += term;
            w.slope[p] -= term * (1.0f - 0.25f * decay) * inverse2;
            V by_product = -0.5f * term * decay * (1.0f + ratio) * inverse2;
            sum += by_product * w.born[j];
            w.born_force[j] += by_product * born;
        }
        w.born_force[i] += sum;
    }
    for (int i = 0; i < n; i++) w.born_force[i] *= w.born[i] * w.born[i] * w.chain[i];
    for (int i = 0, p = 0; i < n; i++) {
        Vec sum{};
        for (int j = i + 1; j < n; j++, p++) {
            V slope = w.slope[p] - w.born_force[i] * w.first[p] - w.born_force[j] * w.second[p];
            Vec g = slope * (x[j] - x[i]);
            sum += g;
            f[j] -= g;
        }
        f[i] += sum;
    }
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

extern "C" {
void lanes_potential(const Molecule *m, const float *positions, float *forces, float *energies) {
    Work w(m->n);
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

// LangevinMiddle (Zhang et al. 2019): kick, half a drift, friction and noise, half a drift.
void lanes_run(const Molecule *m, float *positions, float *velocities, Random *random, int steps, float dt,
               float friction, float kT) {
    Vec *x = (Vec *)positions, *v = (Vec *)velocities;
    Work w(m->n);
    std::vector<Vec> old(m->n), unconstrained(m->n), noise(m->n);
    float stay = std::exp(-friction * dt), width = std::sqrt(kT * (1 - stay * stay));
    for (int step = 0; step < steps; step++) {
        potential(*m, w, x);
        for (int i = 0; i < m->n; i++) v[i] += all(dt / m->mass[i]) * w.force[i];
        constrain_velocities(*m, x, v);
        random->normal(noise);
        for (int i = 0; i < m->n; i++) {
            old[i] = x[i];
            x[i] += all(0.5f * dt) * v[i];
            v[i] = all(stay) * v[i] + all(width / std::sqrt(m->mass[i])) * noise[i];
            x[i] += all(0.5f * dt) * v[i];
            unconstrained[i] = x[i];
        }
        constrain_positions(*m, old.data(), x);
        for (int i = 0; i < m->n; i++) v[i] += all(1 / dt) * (x[i] - unconstrained[i]);
    }
}
}
