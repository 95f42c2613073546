// Langevin dynamics of many molecules of up to 1,200 atoms at once, one replica in each thread block of a GPU and every
// threads-th atom in a thread: bonds, angles, periodic torsions, all pairs (Coulomb, Lennard-Jones, GBSA-OBC2 with its
// surface term), constraints by SHAKE and RATTLE. Units are OpenMM's: nm, ps, amu, kJ/mol.
//
// Also C++, in which a block is a loop over its threads (EACH_THREAD): between two SYNC() a thread may read what others
// wrote before the first, and all that outlives a SYNC() lies in `Shared`.
//
// What a block takes of a multiprocessor of an H200 (65,536 registers, 228 KiB of shared memory of which a block may have
// 227 and pays 1 for itself, 64 warps). An atom takes 88 bytes (Shared::BYTES): 1,200 atoms take 104.5 KiB, and two
// blocks fit. All that others read of an atom lies there, Born radii too: the pair loops read one atom j at a time for
// all lanes of a warp (a broadcast, no bank conflicts), so three loads serve some hundred operations, and loops over
// tiles in registers would save little. A thread has ceil(n / 512) atoms, one after the other, and a block as few
// threads as then hold all: 288 threads (1 atom) at 284 atoms, 288 (2) at 556, 416 (2) at 784, 416 (3) at 1,200. With 64
// registers a thread (__launch_bounds__(512, 2)) 65,536 / 64 = 1,024 threads are resident, 26 to 32 warps; shared memory
// never is what limits. All sums are over j in ascending order, so that numbers do not depend on the threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#ifdef __CUDACC__
#define DEVICE __device__ __forceinline__
#define EACH_THREAD(i, threads) if (const int i = threadIdx.x; true)
#define SYNC() __syncthreads()
DEVICE float inverse_root(float a) { return rsqrtf(a); }
DEVICE float reciprocal(float a) { return __fdividef(1.0f, a); }
DEVICE float exponential(float a) { return __expf(a); }
DEVICE float logarithm(float a) { return __logf(a); }
DEVICE float sine(float a) { return __sinf(a); }
DEVICE float cosine(float a) { return __cosf(a); }
DEVICE int rounded(float a) { return __float2int_rn(a); }
DEVICE void add(int &to, int value) { atomicAdd(&to, value); }
#else
#define DEVICE inline
#define __restrict__ __restrict
#define EACH_THREAD(i, threads) for (int i = 0; i < threads; i++)
#define SYNC()
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
using std::fabs;
using std::fmax;
using std::fmin;
DEVICE float inverse_root(float a) { return 1.0f / std::sqrt(a); }
DEVICE float reciprocal(float a) { return 1.0f / a; }
DEVICE float exponential(float a) { return std::exp(a); }
DEVICE float logarithm(float a) { return std::log(a); }
DEVICE float sine(float a) { return std::sin(a); }
DEVICE float cosine(float a) { return std::cos(a); }
DEVICE int rounded(float a) { return (int)std::lrint(a); }
DEVICE void add(int &to, int value) { to += value; }
#endif

struct Vec {
    float x, y, z;
};
DEVICE Vec operator+(Vec a, Vec b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
DEVICE Vec operator-(Vec a, Vec b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
DEVICE Vec operator*(float s, Vec a) { return {s * a.x, s * a.y, s * a.z}; }
DEVICE void operator+=(Vec &a, Vec b) { a = a + b; }
DEVICE void operator-=(Vec &a, Vec b) { a = a - b; }
DEVICE float dot(Vec a, Vec b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
DEVICE Vec cross(Vec a, Vec b) { return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x}; }

struct Terms {  // rows of a table that belong to one molecule
    int first, count;
};
struct Molecule {  // the layout of blocks.py
    int n, atom, word, state;  // atoms; where its atoms, exceptions and (its replicas' atoms) positions begin
    Terms bonds, angles, torsions, pairs, clusters;
    uint32_t seed;
    float solvent, surface;  // Coulomb's constant times the difference of 1/dielectric; energy of an area, times 4 pi
    float far;               // nm^2: squared distance beyond which a series gives what neighbours take from the solvent
};
struct Replica {
    int molecule, number;
};
struct Data {  // all molecules; the layout of blocks.py
    const Molecule *molecules;
    const Replica *replicas;    // by the number of threads they take
    const uint32_t *exception;  // (n / 32 rounded up, n): bit j % 32 of [j / 32][i]: no Coulomb and Lennard-Jones of i, j
    const int *bond, *angle, *torsion, *pair;  // atoms; those of torsions followed by the first term and the number of terms
    const float *bond_p, *angle_p, *torsion_p, *pair_p;  // length, k; angle, k; periodicity, phase, k; Coulomb, 1/r^12, 1/r^6
    const int *cluster;      // an atom and the hydrogens (3; 0: none) whose distance to it is fixed, and their number
    const float *cluster_p;  // those distances (3)
    const float4 *kind;      // sigma / 2, 2 sqrt(epsilon), reduced radius, scaled reduced radius
    const float4 *body;      // charge, 1/mass, radius, -
    float *positions, *velocities;
};
struct Task {
    long long step;  // what was done before
    int steps;
    float dt, stay, width, kT;
    float *frame, *forces, *energies;
};
enum Mode { RUN, VELOCITIES, POTENTIAL };

constexpr float PROBE = 0.14f;                             // nm
constexpr float ALPHA = 1.0f, BETA = 0.8f, GAMMA = 4.85f;  // of OBC2
constexpr float COULOMB = 138.935456f;
constexpr float FINE = 4096;  // forces of bonded terms are added up as integers of 1/4096 kJ/mol/nm: in any order the same
constexpr float NEAREST = 1e-6f;  // nm^2: what all pairs of an atom with itself need to give finite numbers, and so nothing
constexpr int RECENTRE = 1000;  // steps
constexpr int LAUNCH = 2500;    // steps
constexpr int ROUNDS = 200;
constexpr int MOST_SHARED = 227 * 1024;  // bytes, of a block

struct Shared {  // of a block
    float4 *place, *kind;  // position and charge; as in Data
    float2 *born;          // Born radius and its inverse
    Vec *velocity, *force;
    int *bonded;  // (room, 3)
    float *chain, *born_force, *energy;  // energies of threads

    static constexpr int BYTES = 16 + 16 + 8 + 12 + 12 + 12 + 4 + 4 + 4;  // an atom
    DEVICE static Shared of(void *memory, int room) {
        Shared s;
        s.place = (float4 *)memory;
        s.kind = s.place + room;
        s.born = (float2 *)(s.kind + room);
        s.velocity = (Vec *)(s.born + room);
        s.force = s.velocity + room;
        s.bonded = (int *)(s.force + room);
        s.chain = (float *)(s.bonded + 3 * room);
        s.born_force = s.chain + room;
        s.energy = s.born_force + room;
        return s;
    }
    DEVICE Vec at(int i) const { return {place[i].x, place[i].y, place[i].z}; }
    DEVICE void move(int i, Vec x) const { place[i].x = x.x, place[i].y = x.y, place[i].z = x.z; }
    DEVICE void pull(int i, Vec f) const {
        add(bonded[3 * i], rounded(FINE * f.x));
        add(bonded[3 * i + 1], rounded(FINE * f.y));
        add(bonded[3 * i + 2], rounded(FINE * f.z));
    }
};

// Philox4x32-10 (Salmon et al. 2011), normal numbers by Box and Muller.
DEVICE Vec normal(uint32_t seed, uint32_t replica, long long step, uint32_t atom, uint32_t purpose) {
    uint32_t c[4] = {(uint32_t)step, (uint32_t)(step >> 32), atom, purpose}, key[2] = {seed, replica};
    for (int round = 0; round < 10; round++) {
        uint64_t a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
        uint32_t c1 = c[1], c3 = c[3];
        c[0] = (uint32_t)(b >> 32) ^ c1 ^ key[0];
        c[1] = (uint32_t)b;
        c[2] = (uint32_t)(a >> 32) ^ c3 ^ key[1];
        c[3] = (uint32_t)a;
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    float u[4];
    for (int k = 0; k < 4; k++) u[k] = ((c[k] >> 8) + 0.5f) * 5.9604645e-8f;
    float r = sqrtf(-2.0f * logf(u[0])), q = sqrtf(-2.0f * logf(u[2]));
    float t = 6.2831853f * (u[1] - 0.5f), p = 6.2831853f * (u[3] - 0.5f);
    return {r * cosine(t), r * sine(t), q * cosine(p)};
}

// What a neighbour at distance r takes from the solvent around an atom, or minus half of the derivative, over r. No two
// atoms come so close (0.06 nm) that one lies in the other.
template <bool derivative> DEVICE float descreen(float r, float inverse, float atom, float neighbour) {
    float low = fmaxf(atom, fabsf(r - neighbour)), high = r + neighbour, both = reciprocal(low * high);
    float lower = high * both, upper = low * both, ratio = logarithm(low * upper);
    float l2 = lower * lower, u2 = upper * upper, inverse2 = inverse * inverse, value;
    if (derivative) {
        value = 0.125f * (1.0f + neighbour * neighbour * inverse2) * (l2 - u2) + 0.25f * ratio * inverse2;
        value *= inverse;
    } else {
        value = lower - upper + 0.25f * r * (u2 - l2) + 0.5f * inverse * ratio +
                0.25f * neighbour * neighbour * inverse * (l2 - u2);
    }
    return atom < high ? value : 0.0f;
}

// The same far away (four scaled radii of the neighbour: to 2e-6 of it), where the atom's own radius has no part in it.
template <bool derivative> DEVICE float descreen_far(float inverse2, float neighbour) {
    float square = neighbour * neighbour * inverse2, value;
    if (derivative) {
        value = 4.0f / 3 + square * (12.0f / 5 + square * (24.0f / 7 + square * (40.0f / 9 + square * (60.0f / 11))));
        value *= inverse2;
    } else {
        value = 2.0f / 3 + square * (4.0f / 5 + square * (6.0f / 7 + square * (8.0f / 9 + square * (10.0f / 11))));
    }
    return neighbour * square * inverse2 * value;
}

// Energy of the terms that are this thread's; forces into s.bonded.
DEVICE float bonded(const Data &d, const Molecule &m, const Shared &s, int thread, int threads) {
    float energy = 0;
    for (int k = m.bonds.first + thread; k < m.bonds.first + m.bonds.count; k += threads) {
        int a = d.bond[2 * k], b = d.bond[2 * k + 1];
        Vec to = s.at(b) - s.at(a);
        float r = sqrtf(dot(to, to)), stretch = r - d.bond_p[2 * k], pull = d.bond_p[2 * k + 1] * stretch;
        energy += 0.5f * pull * stretch;
        Vec g = (pull / r) * to;
        s.pull(a, g);
        s.pull(b, -1.0f * g);
    }
    for (int k = m.pairs.first + thread; k < m.pairs.first + m.pairs.count; k += threads) {
        int a = d.pair[2 * k], b = d.pair[2 * k + 1];
        Vec to = s.at(b) - s.at(a);
        float inverse2 = 1.0f / dot(to, to), inverse6 = inverse2 * inverse2 * inverse2;
        float coulomb = d.pair_p[3 * k] * sqrtf(inverse2), repulsion = d.pair_p[3 * k + 1] * inverse6 * inverse6;
        float dispersion = d.pair_p[3 * k + 2] * inverse6;
        energy += coulomb + repulsion - dispersion;
        Vec g = (-(coulomb + 12.0f * repulsion - 6.0f * dispersion) * inverse2) * to;
        s.pull(a, g);
        s.pull(b, -1.0f * g);
    }
    for (int k = m.angles.first + thread; k < m.angles.first + m.angles.count; k += threads) {
        int a = d.angle[3 * k], b = d.angle[3 * k + 1], c = d.angle[3 * k + 2];
        Vec u = s.at(b) - s.at(a), v = s.at(b) - s.at(c), perpendicular = cross(u, v);
        float u2 = dot(u, u), v2 = dot(v, v), area = fmaxf(sqrtf(dot(perpendicular, perpendicular)), 1e-6f);
        float bend = atan2f(area, dot(u, v)) - d.angle_p[2 * k], torque = d.angle_p[2 * k + 1] * bend;
        energy += 0.5f * torque * bend;
        Vec fa = (torque / (u2 * area)) * cross(u, perpendicular), fc = (-torque / (v2 * area)) * cross(v, perpendicular);
        s.pull(a, fa);
        s.pull(c, fc);
        s.pull(b, -1.0f * (fa + fc));
    }
    for (int k = m.torsions.first + thread; k < m.torsions.first + m.torsions.count; k += threads) {
        const int *of = d.torsion + 6 * k;
        Vec first = s.at(of[0]), second = s.at(of[1]), third = s.at(of[2]);
        Vec u = first - second, axis = third - second, v = third - s.at(of[3]);
        Vec p = cross(u, axis), q = cross(axis, v);
        float length2 = dot(axis, axis), length = sqrtf(length2);
        float angle = atan2f(dot(u, q) * length, dot(p, q)), slope = 0;
        for (int term = of[4]; term < of[4] + of[5]; term++) {
            float times = d.torsion_p[3 * term], height = d.torsion_p[3 * term + 2];
            float phase = times * angle - d.torsion_p[3 * term + 1];
            slope -= height * times * sine(phase);
            energy += height * (1.0f + cosine(phase));
        }
        Vec fa = (-slope * length / dot(p, p)) * p, fd = (slope * length / dot(q, q)) * q;
        Vec common = (dot(u, axis) / length2) * fa - (dot(v, axis) / length2) * fd;
        s.pull(of[0], fa);
        s.pull(of[1], common - fa);
        s.pull(of[2], -1.0f * (fd + common));
        s.pull(of[3], fd);
    }
    return energy;
}

// Coulomb and Lennard-Jones of one atom, and its Born radius; returns its share of the energy.
DEVICE float pairs_and_radius(const Data &d, const Molecule &m, const Shared &s, int i) {
    float4 a = s.place[i], kind = s.kind[i], body = d.body[m.atom + i];
    float energy = 0, sum = 0, charge = COULOMB * a.w;
    Vec force = {0, 0, 0};
    for (int base = 0; base < m.n; base += 32) {
        uint32_t off = d.exception[m.word + base / 32 * m.n + i];
        for (int j = base; j < base + 32 && j < m.n; j++, off >>= 1) {
            float4 b = s.place[j], other = s.kind[j];
            Vec to = {b.x - a.x, b.y - a.y, b.z - a.z};
            float square = fmaxf(dot(to, to), NEAREST), inverse = inverse_root(square), inverse2 = inverse * inverse;
            float width = (kind.x + other.x) * inverse, width2 = width * width, width6 = width2 * width2 * width2;
            float coulomb = charge * b.w * inverse, dispersion = kind.y * other.y * width6;
            float repulsion = dispersion * width6;
            bool on = !(off & 1);
            energy += on ? coulomb + repulsion - dispersion : 0.0f;
            force += (on ? (6.0f * dispersion - 12.0f * repulsion - coulomb) * inverse2 : 0.0f) * to;
            if (square > m.far)
                sum += descreen_far<false>(inverse2, other.w);
            else
                sum += descreen<false>(square * inverse, inverse, kind.z, other.w);
        }
    }
    float r = kind.z, full = body.z, psi = 0.5f * r * sum, psi2 = psi * psi;
    float tanh = 1.0f - 2.0f / (expf(2.0f * psi * (ALPHA - BETA * psi + GAMMA * psi2)) + 1.0f);
    float inverse = 1.0f / r - tanh / full, ratio = full * inverse, ratio3 = ratio * ratio * ratio;
    float surface = m.surface * (full + PROBE) * (full + PROBE) * ratio3 * ratio3;
    s.force[i] = force;
    s.born[i] = {1.0f / inverse, inverse};
    s.chain[i] = (1.0f - tanh * tanh) * (r / full) * (ALPHA - 2.0f * BETA * psi + 3.0f * GAMMA * psi2);
    s.born_force[i] = -6.0f * surface * inverse;
    return 0.5f * energy + surface;
}

// The solvent's energies at fixed Born radii; an atom's own is that of a pair with itself.
DEVICE float solvated_pairs(const Molecule &m, const Shared &s, int i) {
    float4 a = s.place[i];
    float2 born = s.born[i];
    float energy = 0, sum = 0, charge = -m.solvent * a.w;
    Vec force = {0, 0, 0};
    for (int j = 0; j < m.n; j++) {
        float4 b = s.place[j];
        float2 other = s.born[j];
        Vec to = {b.x - a.x, b.y - a.y, b.z - a.z};
        float square = dot(to, to), ratio = 0.25f * square * born.y * other.y, decay = exponential(-ratio);
        float inverse = inverse_root(square + born.x * other.x * decay), inverse2 = inverse * inverse;
        float term = charge * b.w * inverse;
        energy += term;
        force += (term * (0.25f * decay - 1.0f) * inverse2) * to;
        sum -= 0.5f * term * decay * (1.0f + ratio) * inverse2 * other.x;
    }
    s.force[i] += force;
    s.born_force[i] = (s.born_force[i] + sum) * born.x * born.x * s.chain[i];
    return 0.5f * energy;
}

// What follows from how the atoms change each other's Born radii.
DEVICE void radii_forces(const Molecule &m, const Shared &s, int i) {
    float4 a = s.place[i], kind = s.kind[i];
    float born_force = s.born_force[i];
    Vec force = {0, 0, 0};
    for (int j = 0; j < m.n; j++) {
        float4 b = s.place[j], other = s.kind[j];
        Vec to = {b.x - a.x, b.y - a.y, b.z - a.z};
        float square = fmaxf(dot(to, to), NEAREST), slope;
        if (square > m.far) {
            float inverse2 = reciprocal(square);
            slope = born_force * descreen_far<true>(inverse2, other.w) +
                    s.born_force[j] * descreen_far<true>(inverse2, kind.w);
        } else {
            float inverse = inverse_root(square), r = square * inverse;
            slope = born_force * descreen<true>(r, inverse, kind.z, other.w) +
                    s.born_force[j] * descreen<true>(r, inverse, other.z, kind.w);
        }
        force -= slope * to;
    }
    s.force[i] += force + (1 / FINE) * Vec{(float)s.bonded[3 * i], (float)s.bonded[3 * i + 1], (float)s.bonded[3 * i + 2]};
    for (int k = 0; k < 3; k++) s.bonded[3 * i + k] = 0;
}

struct Cluster {  // an atom and its hydrogens, which one thread moves
    int hydrogens, atom[4];
    float inverse_mass[4], distance[4];
    Vec x[4], v[4];

    template <class Do> DEVICE void each(Do act) const {
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (k <= hydrogens) act(k);
    }
    DEVICE Cluster(const Data &d, const Molecule &m, const Shared &s, int i) {
        const int *row = d.cluster + 5 * (m.clusters.first + i);
        hydrogens = row[4];
        each([&](int k) {
            atom[k] = row[k];
            distance[k] = k ? d.cluster_p[3 * (m.clusters.first + i) + k - 1] : 0.0f;
            inverse_mass[k] = d.body[m.atom + atom[k]].y;
            x[k] = s.at(atom[k]);
            v[k] = s.velocity[atom[k]];
        });
    }
    DEVICE void constrain_velocities() {
        for (int round = 0; round < ROUNDS; round++) {
            float worst = 0;
            each([&](int k) {
                if (!k) return;
                Vec to = x[k] - x[0];
                float along = dot(v[k] - v[0], to);
                float impulse = along / (dot(to, to) * (inverse_mass[0] + inverse_mass[k]));
                worst = fmaxf(worst, fabsf(along) / distance[k]);
                v[0] += (impulse * inverse_mass[0]) * to;
                v[k] -= (impulse * inverse_mass[k]) * to;
            });
            if (!(worst >= 1e-5f)) return;
        }
    }
    DEVICE void constrain_positions(const Vec *old) {
        for (int round = 0; round < ROUNDS; round++) {
            float worst = 0;
            each([&](int k) {
                if (!k) return;
                Vec to = x[k] - x[0], direction = old[k] - old[0];
                float square = distance[k] * distance[k], excess = dot(to, to) - square;
                float shift = excess / (2.0f * (inverse_mass[0] + inverse_mass[k]) * dot(to, direction));
                worst = fmaxf(worst, fabsf(excess) / square);
                x[0] += (shift * inverse_mass[0]) * direction;
                x[k] -= (shift * inverse_mass[k]) * direction;
            });
            if (!(worst >= 2e-5f)) return;
        }
    }
};

// The rest of a LangevinMiddle step (Zhang et al. 2019) after the kick: half a drift, friction and noise, half a drift.
DEVICE void drift(const Data &d, const Molecule &m, const Task &t, const Shared &s, int i, int replica, long long step) {
    Cluster c(d, m, s, i);
    c.constrain_velocities();
    Vec old[4], unconstrained[4];
    c.each([&](int k) {
        old[k] = c.x[k];
        c.x[k] += (0.5f * t.dt) * c.v[k];
        Vec noise = normal(m.seed, replica, step, c.atom[k], 0);
        c.v[k] = t.stay * c.v[k] + (t.width * sqrtf(c.inverse_mass[k])) * noise;
        c.x[k] += (0.5f * t.dt) * c.v[k];
        unconstrained[k] = c.x[k];
    });
    c.constrain_positions(old);
    c.each([&](int k) {
        s.move(c.atom[k], c.x[k]);
        s.velocity[c.atom[k]] = c.v[k] + (1.0f / t.dt) * (c.x[k] - unconstrained[k]);
    });
}

DEVICE void draw(const Data &d, const Molecule &m, const Task &t, const Shared &s, int i, int replica) {
    Cluster c(d, m, s, i);
    c.each([&](int k) { c.v[k] = sqrtf(t.kT * c.inverse_mass[k]) * normal(m.seed, replica, t.step, c.atom[k], 1); });
    c.constrain_velocities();
    c.each([&](int k) { s.velocity[c.atom[k]] = c.v[k]; });
}

DEVICE Vec centre(const Shared &s, int n) {
    Vec sum = {0, 0, 0};
    for (int j = 0; j < n; j++) sum += s.at(j);
    return (1.0f / n) * sum;
}

// What a thread does with each of its atoms, or clusters.
#define EACH_OWN(i, thread, threads, count) for (int i = thread; i < count; i += threads)

template <Mode mode> DEVICE void simulate(const Data &d, const Task &t, int block, int threads, int room, void *memory) {
    const Shared s = Shared::of(memory, room);
    const Replica replica = d.replicas[block];
    const Molecule m = d.molecules[replica.molecule];
    Vec *x = (Vec *)d.positions + m.state + (long long)replica.number * m.n;
    Vec *v = (Vec *)d.velocities + (x - (Vec *)d.positions);
    EACH_THREAD(thread, threads) {
        s.energy[thread] = 0;
        EACH_OWN(i, thread, threads, m.n) {
            s.place[i] = {x[i].x, x[i].y, x[i].z, d.body[m.atom + i].x};
            s.kind[i] = d.kind[m.atom + i];
            s.velocity[i] = v[i];
            for (int k = 0; k < 3; k++) s.bonded[3 * i + k] = 0;
        }
    }
    SYNC();
    for (int done = 0; done < t.steps; done++) {
        if (mode == RUN && (t.step + done) % RECENTRE == 0) {
            EACH_THREAD(thread, threads) {
                const Vec middle = centre(s, m.n);
                EACH_OWN(i, thread, threads, m.n) s.force[i] = middle;
            }
            SYNC();
            EACH_THREAD(thread, threads) EACH_OWN(i, thread, threads, m.n) s.move(i, s.at(i) - s.force[i]);
            SYNC();
        }
        EACH_THREAD(thread, threads) {
            float energy = bonded(d, m, s, thread, threads);
            EACH_OWN(i, thread, threads, m.n) energy += pairs_and_radius(d, m, s, i);
            if (mode == POTENTIAL) s.energy[thread] += energy;
        }
        SYNC();
        EACH_THREAD(thread, threads) {
            float energy = 0;
            EACH_OWN(i, thread, threads, m.n) energy += solvated_pairs(m, s, i);
            if (mode == POTENTIAL) s.energy[thread] += energy;
        }
        SYNC();
        EACH_THREAD(thread, threads) EACH_OWN(i, thread, threads, m.n) {
            radii_forces(m, s, i);
            if (mode == RUN) s.velocity[i] += (t.dt * d.body[m.atom + i].y) * s.force[i];
        }
        SYNC();
        if (mode == RUN) {
            EACH_THREAD(thread, threads) EACH_OWN(i, thread, threads, m.clusters.count)
                drift(d, m, t, s, i, replica.number, t.step + done);
            SYNC();
        }
    }
    if (mode == VELOCITIES) {
        EACH_THREAD(thread, threads) EACH_OWN(i, thread, threads, m.clusters.count) draw(d, m, t, s, i, replica.number);
        SYNC();
    }
    EACH_THREAD(thread, threads) {
        const Vec middle = mode == RUN && t.frame ? centre(s, m.n) : Vec{0, 0, 0};
        EACH_OWN(i, thread, threads, m.n) {
            long long atom = x + i - (Vec *)d.positions;
            x[i] = s.at(i);
            v[i] = s.velocity[i];
            if (mode == RUN && t.frame) ((Vec *)t.frame)[atom] = s.at(i) - middle;
            if (mode == POTENTIAL) ((Vec *)t.forces)[atom] = s.force[i];
        }
        if (mode == POTENTIAL && thread == 0) {
            float sum = 0;
            for (int k = 0; k < threads; k++) sum += s.energy[k];
            t.energies[block] = sum;
        }
    }
}

struct Group {  // replicas of molecules that take the same room
    int threads, room, first, count;
};

static std::string error;

#ifdef __CUDACC__
template <Mode mode> __global__ void __launch_bounds__(512, 2) kernel(Data d, Task t, int first, int room) {
    extern __shared__ float4 memory[];
    simulate<mode>(d, t, first + blockIdx.x, blockDim.x, room, memory);
}

static bool good(cudaError_t status) {
    if (status != cudaSuccess) error = cudaGetErrorString(status);
    return status == cudaSuccess;
}
typedef cudaStream_t Stream;
static bool new_stream(Stream &stream, int number) {  // the earlier, the more urgent
    int least, most;
    return good(cudaDeviceGetStreamPriorityRange(&least, &most)) &&
           good(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, std::min(least, most + number)));
}
static void delete_stream(Stream stream) {
    if (stream) cudaStreamDestroy(stream);
}
static void *allocate(size_t bytes) {
    void *memory = nullptr;
    return good(cudaMalloc(&memory, bytes ? bytes : 1)) ? memory : nullptr;
}
static void release(void *memory) { cudaFree(memory); }
static bool copy(void *to, const void *from, size_t bytes) {
    return good(cudaMemcpy(to, from, bytes, cudaMemcpyDefault)) && good(cudaDeviceSynchronize());
}
template <Mode mode> static bool launch(const Data &d, const Task &t, const Group &g, Stream stream) {
    const int bytes = Shared::BYTES * g.room;  // more than 48 KiB have to be asked for
    if (!good(cudaFuncSetAttribute(kernel<mode>, cudaFuncAttributeMaxDynamicSharedMemorySize, MOST_SHARED)) ||
        // one division of cache and shared memory for all groups, without which those of different sizes wait for each
        // other on a multiprocessor
        !good(cudaFuncSetAttribute(kernel<mode>, cudaFuncAttributePreferredSharedMemoryCarveout,
                                   cudaSharedmemCarveoutMaxShared)))
        return false;
    kernel<mode><<<g.count, g.threads, bytes, stream>>>(d, t, g.first, g.room);
    return good(cudaGetLastError());
}
static bool finish() { return good(cudaDeviceSynchronize()); }
#else
typedef int Stream;
static bool new_stream(Stream &, int) { return true; }
static void delete_stream(Stream) {}
static void *allocate(size_t bytes) { return std::calloc(bytes ? bytes : 1, 1); }
static void release(void *memory) { std::free(memory); }
static bool copy(void *to, const void *from, size_t bytes) {
    std::memcpy(to, from, bytes);
    return true;
}
template <Mode mode> static bool launch(const Data &d, const Task &t, const Group &g, Stream) {
    std::vector<float4> memory(Shared::BYTES * g.room / sizeof(float4));
    for (int block = g.first; block < g.first + g.count; block++)
        simulate<mode>(d, t, block, g.threads, g.room, memory.data());
    return true;
}
static bool finish() { return true; }
#endif

struct Blocks {
    Data data;
    std::vector<void *> memory;
    std::vector<Group> groups;
    std::vector<Stream> streams;
    size_t state;  // bytes of the positions of all replicas

    template <Mode mode> bool launch_all(const Task &t) {
        for (size_t k = 0; k < groups.size(); k++)
            if (!launch<mode>(data, t, groups[k], streams[k])) return false;
        return true;
    }
};

extern "C" {
const char *blocks_error() { return error.c_str(); }

void blocks_free(Blocks *b) {
    for (void *memory : b->memory) release(memory);
    for (Stream stream : b->streams) delete_stream(stream);
    delete b;
}

// Arrays are the pointers of Data in their order, with their sizes in bytes; nullptr if the device says no.
Blocks *blocks_new(const void *const *arrays, const long long *bytes, const Group *groups, int n_groups) {
    Blocks *b = new Blocks{};
    void **to = (void **)&b->data;
    for (size_t k = 0; k < sizeof(Data) / sizeof(void *); k++) {
        to[k] = allocate(bytes[k]);
        b->memory.push_back(to[k]);
        if (!to[k] || !copy(to[k], arrays[k], bytes[k])) return blocks_free(b), nullptr;
        b->state = bytes[k];
    }
    b->groups.assign(groups, groups + n_groups);
    b->streams.resize(n_groups);
    for (int k = 0; k < n_groups; k++)
        if (!new_stream(b->streams[k], k)) return blocks_free(b), nullptr;
    return b;
}

bool blocks_read(Blocks *b, float *positions, float *velocities) {
    return copy(positions, b->data.positions, b->state) && copy(velocities, b->data.velocities, b->state);
}

bool blocks_write(Blocks *b, const float *positions, const float *velocities) {
    return copy(b->data.positions, positions, b->state) && copy(b->data.velocities, velocities, b->state);
}

bool blocks_velocities(Blocks *b, long long draw, float kT) {
    Task t{};
    t.step = draw, t.kT = kT;
    return b->launch_all<VELOCITIES>(t) && finish();
}

bool blocks_potential(Blocks *b, float *forces, float *energies, int replicas) {
    Task t{};
    t.steps = 1;
    t.forces = (float *)allocate(b->state);
    t.energies = (float *)allocate(4 * replicas);
    bool fine = t.forces && t.energies && b->launch_all<POTENTIAL>(t) && finish() && copy(forces, t.forces, b->state) &&
                copy(energies, t.energies, 4 * replicas);
    release(t.forces);
    release(t.energies);
    return fine;
}

// Steps before each of the frames (count, replicas, atoms, 3); without frames, steps alone.
bool blocks_run(Blocks *b, long long step, int steps, float dt, float friction, float kT, int count, float *frames) {
    Task t{};
    t.dt = dt, t.kT = kT;
    t.stay = std::exp(-friction * dt), t.width = std::sqrt(kT * (1 - t.stay * t.stay));
    float *kept = frames ? (float *)allocate(b->state * count) : nullptr;
    bool fine = !frames || kept;
    t.step = step;
    for (int frame = 0; fine && frame < count; frame++)
        for (int left = steps; fine && left > 0; left -= t.steps, t.step += t.steps) {
            t.steps = left < LAUNCH ? left : LAUNCH;
            t.frame = kept && t.steps == left ? kept + b->state / sizeof(float) * frame : nullptr;
            fine = b->launch_all<RUN>(t);
        }
    fine = fine && finish() && (!frames || copy(frames, kept, b->state * count));
    if (kept) release(kept);
    return fine;
}
}
