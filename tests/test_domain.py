"""The domain: chemistry, sizes, strides and temperatures; what lies outside is named."""

import json
import pickle
import re
import warnings
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch
from openmm import unit
from openmm.app import Element, Modeller, PDBFile, Topology

from openmm_starmd import StarMDIntegrator, available_models, choose_model, load_model
from openmm_starmd.domain import REASONS, Domain, allowing, refuse, relative_gyration, warn_of_numbering
from openmm_starmd.errors import ModelDomainError
from openmm_starmd.plugins import NewPropagator
from openmm_starmd.protein.bond_graph import CAPPED
from openmm_starmd.protein.residues import VARIANTS
from openmm_starmd.protein.tokens import ResidueTokens

PLAIN = Domain(variants=())
PROTEINS = Path(__file__).resolve().parents[1] / "benchmarks" / "validation" / "proteins"


def reasons(domain, topology, stride=100.0, temperature=300.0, positions=None):
    found = domain.check(ResidueTokens.from_topology(topology), stride, temperature, positions)
    return [violation.reason for violation in found]


def one_chain(topology, numbers=None):
    """All residues of a Topology in one chain, numbered on or by ``numbers``."""
    new, twin = Topology(), {}
    chain = new.addChain("A")
    for k, old in enumerate(topology.residues()):
        residue = new.addResidue(old.name, chain, str(numbers[k] if numbers else k + 1))
        twin |= {a: new.addAtom(a.name, a.element, residue) for a in old.atoms()}
    for a, b in topology.bonds():
        new.addBond(twin[a], twin[b])
    return new


def two(topology, positions):
    modeller = Modeller(topology, positions * unit.nanometer)
    modeller.add(topology, (positions + 2.0) * unit.nanometer)
    return modeller.topology


@pytest.mark.parametrize("variant", ["HIE", "HIP", "ASH", "GLH", "LYN"])
def test_protonation_that_was_not_trained_on_is_refused_by_name(build_peptide, variant):
    letter = {"H": "H", "A": "D", "G": "E", "L": "K"}[variant[0]]
    topology, _ = build_peptide(f"A{letter}A", variants={1: variant})
    (told,) = PLAIN.check(ResidueTokens.from_topology(topology), 100.0, 300.0)
    assert told.reason == "variants" and f"{variant} at A:" in told
    assert reasons(Domain(variants=(variant,)), topology) == []
    assert reasons(PLAIN, build_peptide(f"A{letter}A", variants={1: "HID"} if letter == "H" else None)[0]) == []


def test_a_residue_that_is_missing_in_the_chain_is_named(build_peptide):
    topology, positions = build_peptide("ARGIL")
    modeller = Modeller(topology, positions * unit.nanometer)
    modeller.delete([residue for residue in topology.residues() if residue.name == "GLY"])
    assert reasons(PLAIN, modeller.topology) == ["gap"]
    (told,) = PLAIN.check(ResidueTokens.from_topology(modeller.topology), 100.0, 300.0)
    assert "between A:ARG 2 and A:ILE 4" in told
    ended = one_chain(two(*build_peptide("AG")), [1, 2, 5, 6])  # ends were put where the gap is
    assert reasons(PLAIN, ended) == ["gap"]


def test_numbers_that_jump_over_a_bond_are_warned_of(build_peptide):
    """A reader of PDB files bonds what follows; where a residue is missing, a minimisation then closes the gap."""
    topology, _ = build_peptide("AGVD", True, True)
    numbered = ResidueTokens.from_topology(one_chain(topology, [1, 2, 3, 5, 6, 7]))
    assert numbered.gaps == [] and numbered.numbering_gaps == [2]
    with pytest.warns(UserWarning, match="jump from A:GLY 3 to A:VAL 5, but the Topology bonds"):
        warn_of_numbering(numbered)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for numbers in (None, [0, 1, 2, 3, 4, 5], [5, 6, 7, 7, 8, 9]):
            warn_of_numbering(ResidueTokens.from_topology(one_chain(topology, numbers)))


def test_two_molecules_in_one_chain_count_as_two(build_peptide):
    together = one_chain(two(*build_peptide("AG")))
    assert reasons(PLAIN, together) == ["chains"]
    assert ResidueTokens.from_topology(together).features.chain_index.tolist() == [0, 0, 1, 1]
    assert reasons(Domain(max_chains=2), together) == []
    capped = one_chain(two(*build_peptide("AG", True, True)))
    assert ResidueTokens.from_topology(capped).features.chain_index.tolist() == [0, 0, 1, 1]


def half(build_peptide, sequence, cap):
    """Peptide with one cap of the two."""
    topology, positions = build_peptide(sequence, True, True)
    modeller = Modeller(topology, positions * unit.nanometer)
    modeller.delete([residue for residue in topology.residues() if residue.name in {"ACE", "NME"} - {cap}])
    return modeller.topology


@pytest.mark.parametrize("sequence", ["A", "DWGR"])
@pytest.mark.parametrize("cap", ["ACE", "NME"])
def test_one_end_capped_and_the_other_free_is_outside(build_peptide, sequence, cap):
    tokens = ResidueTokens.from_topology(half(build_peptide, sequence, cap))
    (told,) = PLAIN.check(tokens, 100.0, 300.0)
    assert told.reason == "caps" and "the model has seen both ends capped or both free" in told
    assert f"one end of the chain from {tokens.residue_labels[0]} is capped" in told
    assert replace(PLAIN, half_capped=True).check(tokens, 100.0, 300.0) == []
    assert replace(PLAIN, caps=False).check(tokens, 100.0, 300.0) == ["the model has not seen capped ends"]
    with pytest.raises(ModelDomainError, match="one end of the chain from .* is capped.*--allow caps"):
        choose_model(tokens, 100.0, 300.0, device="cpu")


def test_caps_are_judged_chain_by_chain(build_peptide):
    parts = {caps: build_peptide("AG", *caps) for caps in product((True, False), repeat=2)}
    for first, second in product(parts, repeat=2):
        modeller = Modeller(parts[first][0], parts[first][1] * unit.nanometer)
        modeller.add(parts[second][0], parts[second][1] * unit.nanometer)
        wrong = sum(n_cap != c_cap for n_cap, c_cap in (first, second))
        for topology in (modeller.topology, one_chain(modeller.topology)):
            found = replace(PLAIN, max_chains=2).check(ResidueTokens.from_topology(topology), 100.0, 300.0)
            assert [(told.reason, told.count("chain from")) for told in found] == [("caps", wrong)] * (wrong > 0)


def test_bonds_over_a_gap_and_d_residues_are_found_in_positions(build_peptide):
    topology, positions = build_peptide("ALA")
    assert reasons(PLAIN, topology, positions=positions) == []
    assert reasons(PLAIN, topology, positions=-positions) == ["chirality"]
    torn = positions.copy()
    torn[[a.index for a in topology.atoms() if a.residue.index == 2]] += np.array([1.0, 0.0, 0.0])
    assert reasons(PLAIN, topology, positions=torn) == ["gap"]


def test_a_centre_without_a_hand_is_outside(build_peptide):
    topology, positions = build_peptide("ALA")
    atoms = {(a.residue.index, a.name): a.index for a in topology.atoms()}
    n, ca, c, cb = (atoms[2, name] for name in ("N", "CA", "C", "CB"))
    normal = np.cross(positions[n] - positions[ca], positions[c] - positions[ca])
    normal /= np.linalg.norm(normal)
    positions[cb] -= 0.9 * np.dot(positions[cb] - positions[ca], normal) * normal
    (told,) = PLAIN.check(ResidueTokens.from_topology(topology), 100.0, 300.0, positions)
    assert told.reason == "chirality" and told == "CA of A:ALA 3 has no configuration: its bonds lie in a plane"


def test_a_start_that_is_no_fold_is_outside_where_the_model_knows_folds_alone(build_peptide):
    topology, extended = build_peptide("ALAKEGALAKEGALAKEG")
    tokens, folds = ResidueTokens.from_topology(topology), replace(PLAIN, max_gyration=1.4)
    carbons = tokens.backbone[:, 1]
    spread = float(np.sqrt(((extended[carbons] - extended[carbons].mean(0)) ** 2).sum(-1).mean()))
    assert spread > 1.4 * 0.22 * 18**0.38
    (told,) = folds.check(tokens, 100.0, 300.0, extended)
    relative = spread / (0.22 * 18**0.38)
    assert told.reason == "fold" and f"are {relative:.2f} times as far" in told
    (told,) = replace(PLAIN, max_gyration=relative - 1e-5).check(tokens, 100.0, 300.0, extended)
    assert re.search(r"are (\S+) times", told)[1] > f"{relative - 1e-5:g}"
    assert folds.check(tokens, 100.0, 300.0) == PLAIN.check(tokens, 100.0, 300.0, extended) == []
    domain = load_model("starmd-protein").domain
    assert [told.reason for told in domain.check(tokens, 100.0, 300.0, extended)] == ["fold"]


@pytest.mark.parametrize(
    "name", ["CLN025", "2JOF", "villin", "1FME", "1FMEcap", "EHEE_rd3_0053", "5PTI", "1UBQ", "1FMEph3", "3A4R"]
)
def test_native_structures_and_their_md_are_folds(name):
    files = sorted(PROTEINS.glob(f"{name}_10*.xtc"))
    md = mdtraj.load([str(file) for file in files], top=str(files[0].with_suffix(".pdb")))
    tokens = ResidueTokens.from_topology(PDBFile(str(files[0].with_suffix(".pdb"))).topology)
    domain = load_model("starmd-protein").domain
    assert domain.check(tokens, 100.0, 300.0, md.xyz[0]) == []
    within = [relative_gyration(torch.from_numpy(x[tokens.backbone[:, 1]])) < domain.max_gyration for x in md.xyz]
    assert all(within)


def test_the_commonest_temperature_is_inside_and_heating_is_not(build_peptide):
    topology, _ = build_peptide("ALA")
    for inside in (298.15, 297.0, 303.0):
        assert reasons(PLAIN, topology, temperature=inside) == []
    for outside in (290.0, 310.0):
        assert reasons(PLAIN, topology, temperature=outside) == ["temperature"]


def test_longest_stride_goes_by_length(build_peptide):
    domain = Domain(max_stride={3: 330.0, 4: 1000.0, 8: 160.0})
    assert [domain.longest_stride(n) for n in (2, 3, 4, 5, 8, 20)] == [330.0, 330.0, 1000.0, 160.0, 160.0, 160.0]
    assert reasons(domain, build_peptide("ALA")[0], 500.0) == ["stride"]
    assert reasons(domain, build_peptide("ALAG")[0], 500.0) == []
    assert Domain.from_dict(json.loads(json.dumps(domain.to_dict()))) == domain


def test_more_past_conformations_than_were_seen_are_refused(build_peptide):
    tokens, domain = ResidueTokens.from_topology(build_peptide("ALA")[0]), Domain(max_context=2)
    assert domain.check(tokens, 100.0, 300.0, context_frames=2) == []
    (told,) = domain.check(tokens, 100.0, 300.0, context_frames=3)
    assert told.reason == "context" and "up to 2 past" in told and "not 3; ask for no more" in told
    assert Domain.from_dict(json.loads(json.dumps(domain.to_dict()))) == domain


@pytest.mark.parametrize("name, sequence", [("starmd-dipeptide", "AG"), ("starmd-peptide", "AGVD")])
def test_an_integrator_tells_how_many_past_conformations_its_model_knows(build_peptide, name, sequence):
    topology, _ = build_peptide(sequence)
    settings = dict(model=name, relaxation=None)
    StarMDIntegrator(topology, 300, 100, contextFrames=load_model(name, "cpu").config.context_frames, **settings)
    with pytest.raises(ModelDomainError, match=r"past conformation.*not 4; .*strict={'context': False};") as error:
        StarMDIntegrator(topology, 300, 100, contextFrames=4, **settings)
    assert "Use model" not in str(error.value) and "command line" not in str(error.value)
    with pytest.warns(UserWarning, match="past conformation"):
        StarMDIntegrator(topology, 300, 100, contextFrames=4, strict={"context": False}, **settings)


def test_embedded_models_see_no_more_past_frames_than_they_know():
    for name in available_models():
        model = load_model(name, "cpu")
        assert model.config.context_frames <= model.domain.max_context < 10, name


def test_everything_outside_is_listed_in_order_of_weight(build_peptide):
    topology, _ = build_peptide("AHA", True, True, variants={1: "HIP"})
    domain = Domain(min_length=5, caps=False, variants=(), residue_types=("HIS",))
    found = reasons(domain, topology, 1.0, 400.0)
    assert found == ["length", "residues", "variants", "caps", "temperature", "stride"]
    assert found == [reason for reason in REASONS if reason in found]


def test_domains_of_older_files_know_no_variants(build_peptide):
    older = {k: v for k, v in Domain().to_dict().items() if k not in ("variants", "temperature_tolerance")}
    assert reasons(Domain.from_dict(older), build_peptide("AHA", variants={1: "HIP"})[0]) == ["variants"]


def test_one_reason_can_be_allowed_without_the_others(build_peptide):
    found = Domain(max_length=2).check(ResidueTokens.from_topology(build_peptide("ALA")[0]), 1e5, 300.0)
    with pytest.raises(ModelDomainError, match=r"\[length\].*\[stride\].*--allow length --allow stride"):
        refuse("m", found)
    with pytest.warns(UserWarning, match="residues"), pytest.raises(ModelDomainError) as error:
        refuse("m", found, {"length": False})
    assert "[stride]" in str(error.value) and "[length]" not in str(error.value)
    with pytest.warns(UserWarning, match="strides"):
        refuse("m", found, allowing(["length", "stride"]))
    with pytest.raises(ValueError, match="size.*expected some of length"):
        allowing(["size"])


def test_another_model_is_advised_only_where_there_is_one(build_peptide):
    fast, slow = (load_model(name, "cpu") for name in ("starmd-peptide-fast", "starmd-peptide"))
    with pytest.raises(ModelDomainError, match="Use model 'starmd-peptide', which knows it"):
        fast.check_domain(ResidueTokens.from_topology(build_peptide("AGVDK")[0]), 100.0, 300.0)
    with pytest.raises(ModelDomainError) as error:
        slow.check_domain(ResidueTokens.from_topology(build_peptide("GYDPETGTGYDPETGT")[0]), 200.0, 300.0)
    assert "Use model" not in str(error.value)


def test_a_disulfide_is_refused_by_name_and_the_advice_leads_on(build_peptide):
    topology, positions = build_peptide("CAGDC")
    modeller = Modeller(topology, positions * unit.nanometer)
    modeller.delete([atom for atom in topology.atoms() if (atom.residue.name, atom.name) == ("CYS", "HG")])
    modeller.topology.addBond(*(atom for atom in modeller.topology.atoms() if atom.name == "SG"))
    with pytest.raises(ModelDomainError) as error:
        choose_model(modeller.topology, 100.0, 300.0, device="cpu")
    told = str(error.value)
    assert "has not seen CYX at A:CYS 1, CYX at A:CYS 5 (CYX: cysteine of a disulfide)" in told
    assert "starmd train" in told and "model='elastic'" in told and "--allow variants" in told
    assert NewPropagator.of("elastic", ResidueTokens.from_topology(modeller.topology), 100.0, 300.0).name == "elastic"


def test_every_fault_is_told_once_and_other_lengths_in_a_clause(build_peptide):
    """A protein with a missing loop and six half-cystines, as BPTI, and one that is too long for every model."""
    pdb = PDBFile(str(PROTEINS / "5PTI_101.pdb"))
    modeller = Modeller(pdb.topology, pdb.positions)
    modeller.delete(list(pdb.topology.residues())[23:28])
    with pytest.raises(ModelDomainError) as error:
        choose_model(modeller.topology, 100.0, 300.0, device="cpu")
    told = str(error.value)
    assert told.startswith("No embedded model knows this system. starmd-protein: residues are missing between ")
    others = "starmd-dipeptide (1 to 2), starmd-peptide (3 to 9), starmd-peptide-fast (4)"
    assert f"This has 53 residues; for other numbers there are {others}." in told and "CYX" not in told
    with pytest.raises(ModelDomainError) as error:
        choose_model(build_peptide("AGHC" + "AG" * 40, variants={2: "HIP", 3: "CYX"})[0], 100.0, 300.0, device="cpu")
    told = str(error.value)
    assert "starmd-protein: the model knows proteins of 10 to 80 residues, this has 84; the model has" in told
    assert told.count("CYM at") == 1 and f"there are {others}." in told
    assert "--allow length --allow variants" in told


def test_what_names_of_histidines_do_is_said_where_a_model_knows_hid_alone(build_peptide):
    advice = "(HIE: name the residue HID in the file, and `starmd prepare` builds HID, which the model knows)"
    topology = build_peptide("DHGR", variants={1: "HIE"})[0]
    with pytest.raises(ModelDomainError) as error:
        choose_model(topology, 100.0, 300.0, device="cpu")
    assert f"starmd-peptide, starmd-peptide-fast: the model has not seen HIE at A:HIS 2 {advice}." in str(error.value)
    with pytest.raises(ModelDomainError) as error:
        NewPropagator.of("starmd-peptide", topology, 100.0, 300.0)(ResidueTokens.from_topology(topology), 100.0, 300.0)
    assert advice in str(error.value)
    tokens = ResidueTokens.from_topology(build_peptide("DHGR", variants={1: "HIP"})[0])
    assert "HID" not in " ".join(PLAIN.check(tokens, 100.0, 300.0))
    tokens = ResidueTokens.from_topology(topology)
    assert "HID" not in " ".join(replace(PLAIN, residue_types=("ASP", "GLY", "ARG")).check(tokens, 100.0, 300.0))


def test_the_nearest_settings_are_inside():
    domain = Domain(max_stride={4: 1000.0, 9: 100.0}, temperature_tolerance=3.0)
    assert domain.nearest_settings(4, 2000.0, 310.0) == (1000.0, 300.0)
    assert domain.nearest_settings(9, 1.0, 298.15) == (10.0, 298.15)
    assert domain.nearest_settings(9, 50.0, 304.0) == (50.0, 300.0)


def test_where_only_the_settings_are_outside_they_are_what_to_change(build_peptide):
    with pytest.raises(ModelDomainError, match="Take a temperature and a stride that a model knows, or try"):
        choose_model(build_peptide("AGVD")[0], 100.0, 350.0, device="cpu")


def test_domains_of_embedded_models_leave_no_length_out():
    domains = [load_model(name, "cpu").domain for name in available_models()]
    known = {
        length for d in domains for length in range(d.min_length, d.max_length + 1) if 100 <= d.longest_stride(length)
    }
    assert known == set(range(1, max(known) + 1)) and max(known) == 80


@pytest.mark.parametrize("sequence", ["RLSDGYA", "NKTFAQEWL"])
def test_strides_of_longer_peptides_end_where_they_were_judged(build_peptide, sequence):
    topology, _ = build_peptide(sequence)
    assert choose_model(topology, 100.0, 300.0, device="cpu").name == "starmd-peptide"
    with pytest.raises(ModelDomainError, match=f"strides of 10 to 100 ps for {len(sequence)} residues"):
        choose_model(topology, 110.0, 300.0, device="cpu")


def test_the_nearest_model_is_one_of_the_right_length(build_peptide):
    """A variant outside weighs less than a length: a model of tetrapeptides is not what to try a protein with."""
    topology, _ = build_peptide("AGHDGACTVA", variants={6: "CYX"})  # CYM, as nothing is bonded to it
    with pytest.raises(ModelDomainError, match="has not seen CYM at A:CYS 7.*--allow variants"):
        choose_model(topology, 100.0, 300.0, device="cpu")
    for strict in ({"variants": False}, False):
        assert choose_model(topology, 100.0, 300.0, device="cpu", strict=strict).name == "starmd-protein"


def test_the_nearest_in_length_is_tried_where_lengths_are_allowed(build_peptide):
    topology, _ = build_peptide("AG" * 50)
    model = choose_model(topology, 100.0, 300.0, device="cpu", strict={"length": False})
    assert model.name == "starmd-protein"


def test_the_strides_of_the_nearest_length_are_told_where_the_length_is_unknown(build_peptide):
    domain = replace(PLAIN, min_length=3, max_length=5, max_stride={4: 1000.0, 5: 330.0})
    told = " ".join(domain.check(ResidueTokens.from_topology(build_peptide("AGAGAGAG")[0]), 500.0, 300.0))
    assert "of 3 to 5 residues, this has 8" in told and "strides of 10 to 330 ps for 5 residues, not 500 ps" in told


@pytest.mark.parametrize(
    "name, variants, capped",
    [
        ("CLN025", set(), False),
        ("1UBQ", {"HIE"}, False),
        ("3A4R", {"HIE"}, False),
        ("5PTI", {"CYX"}, False),
        ("1FMEcap", set(), True),
        ("1FMEph3", {"ASH", "GLH"}, False),
        ("2WQGvar", {"LYN"}, False),
    ],
)
def test_the_protein_model_takes_what_it_is_judged_on(name, variants, capped):
    topology = PDBFile(str(PROTEINS / f"{name}_101.pdb")).topology
    features = ResidueTokens.from_topology(topology).features
    assert {VARIANTS[k] for k in features.variant} - {""} == variants
    assert bool((features.n_end == CAPPED).any()) == capped
    assert choose_model(topology, 100.0, 300.0, device="cpu").name == "starmd-protein"


@pytest.mark.parametrize("name", available_models())
def test_embedded_models_know_what_they_saw(build_peptide, name):
    model = load_model(name, "cpu")
    length = max(min(model.domain.max_length, 4), model.domain.min_length)
    histidine = "AHVDGASTVA"[:length]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.check_domain(ResidueTokens.from_topology(build_peptide(histidine)[0]), 100.0, 298.15)
    for variant in ("HIE", "HIP"):
        outside = [] if variant in model.domain.variants else ["variants"]
        assert reasons(model.domain, build_peptide(histidine, variants={1: variant})[0]) == outside
    assert "HIE" in model.card and "298.15" in model.card
    amide = deepcopy(build_peptide("AGVDGASTVA"[:length], False, True)[0])
    amide = one_chain(amide)
    for atom in amide.atoms():  # methyl of NME as a hydrogen
        if atom.residue.name == "NME" and atom.name == "C":
            atom.element = Element.getBySymbol("H")
    assert reasons(model.domain, amide) == ["variants", "caps"]


@pytest.mark.parametrize(
    "stride, temperature, told",
    [
        (110.0001, 300.0, "strides of 10 to 110 ps, not 110.0001 ps"),
        (9.99999999, 300.0, "strides of 10 to 110 ps, not 9.99999999 ps"),
        (500.0, 300.0, "strides of 10 to 110 ps, not 500 ps"),
        (float("nan"), 300.0, "strides of 10 to 110 ps, not nan ps"),
        (100.0, 303.00001, "300 K +- 3 K, not 303.00001 K"),
        (100.0, np.nextafter(297.0, 0), "300 K +- 3 K, not 296.9999999999999 K"),
    ],
)
def test_numbers_beyond_a_limit_look_like_it(stride, temperature, told):
    assert [str(found) for found in replace(PLAIN, max_stride=110.0)._of_settings(3, stride, temperature)] == [
        f"the model knows {told}"
    ]


def test_violations_travel_between_processes():
    (told, *_) = [v for v in Domain(min_temperature=400.0, max_temperature=400.0)._of_settings(3, 100.0, 300.0)]
    again = pickle.loads(pickle.dumps(told))
    assert (again, again.reason) == (told, "temperature")
