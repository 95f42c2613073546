"""Structure files as PDBFixer takes them: the first model, one conformation of each residue, standard residue names."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from string import hexdigits

from openmm.app.internal.pdbx.reader.PdbxContainers import DataCategory, DataContainer
from openmm.app.internal.pdbx.reader.PdbxReader import PdbxReader
from openmm.app.internal.pdbx.writer.PdbxWriter import PdbxWriter
from pdbfixer import PDBFixer

from openmm_starmd.errors import UnsupportedTopologyError
from openmm_starmd.protein.residues import RESIDUE_TYPES, canonical_name
from openmm_starmd.systems.conformations import AtomRow, Place, Selection, name_chains_apart, select

_FIRST_HEX = 0xA000
_COPIED = ("SEQRES", "MODRES", "CONECT", "CRYST1")
_CATEGORIES = ("cell", "entity_poly_seq", "struct_asym", "pdbx_struct_mod_residue")
_SITE_COLUMNS = (
    "id", "label_atom_id", "label_comp_id", "label_asym_id", "label_seq_id", "auth_seq_id", "pdbx_PDB_ins_code",
    "type_symbol", "label_alt_id", "Cartn_x", "Cartn_y", "Cartn_z",
)  # fmt: skip


@dataclass(frozen=True)
class Link:
    """A bond that a record of the file names: two (place, atom name), and whether it leads to a symmetry copy."""

    record: str
    first: tuple[Place, str]
    second: tuple[Place, str]
    to_copy: bool = False


@dataclass
class StructureFile:
    """Structure that `prepare` works on."""

    # first model, one conformation, residue names as in the Protein Data Bank, the author's chain names
    fixer: PDBFixer
    # Amber's name of the protonation state (HIP, ASH, ...) of each place whose residue is named after one
    protonation: dict[Place, str] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)  # bonds of LINK, SSBOND and _struct_conn records
    changes: list[str] = field(default_factory=list)  # what was left out


def read_structure(path: str | os.PathLike) -> StructureFile:
    """Read the first model of a PDB or mmCIF file; UnsupportedTopologyError if it is absent, empty or unreadable."""
    path = Path(path)
    if not path.is_file():
        raise UnsupportedTopologyError(f"{path}: there is no such file.")
    if path.stat().st_size == 0:
        raise UnsupportedTopologyError(f"{path} is empty.")
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        lines = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
        return (_read_mmcif if next(lines, "").startswith("data_") else _read_pdb)(text)
    except UnsupportedTopologyError as error:
        raise UnsupportedTopologyError(f"{path}: {error}") from None
    except Exception as error:  # whatever the readers stumble over
        raise UnsupportedTopologyError(
            f"{path} cannot be read as a PDB or mmCIF file with atoms in it ({type(error).__name__}: {error}). "
            "Unpack a packed file; OpenMM's PDBFile.writeFile writes what other formats (prmtop, gro, psf) hold."
        ) from error


def _read_pdb(text: str) -> StructureFile:
    """Read a PDB file, whose records have fixed columns."""
    rows, lines, atom_lines, links = [], [], [], []
    model, segment, has_atoms = 0, 0, False
    for line in text.splitlines():
        record = line[:6].strip()
        if record in ("MODEL", "ENDMDL"):
            model += has_atoms
            has_atoms = False
        elif record in ("ATOM", "HETATM"):
            has_atoms = True
            if model == 0:
                rows.append(_pdb_row(line, segment))
                atom_lines.append(len(lines))
                lines.append(line)
        elif record[:3] == "TER" and has_atoms and model == 0 and lines[-1] != "TER":
            lines.append("TER")
            segment += 1
        elif record in _COPIED:
            lines.append(line)
        elif record in ("LINK", "SSBOND"):
            links.append(_pdb_link(record, line.ljust(80)))
    if not rows:
        raise ValueError("there are no ATOM records in it")
    rows, renamed = name_chains_apart(rows, set())
    selection = select(rows)
    for number, new in zip(atom_lines, selection.rows, strict=True):
        lines[number] = None if new is None else _pdb_line(lines[number], new)
    fixer = PDBFixer(pdbfile=StringIO("\n".join(line for line in lines if line is not None) + "\nEND\n"))
    links += _recorded_disulfides(fixer, [line for line in lines if line and line.startswith("CONECT")])
    return _structure(fixer, selection, links, model + has_atoms, renamed)


def _structure(
    fixer: PDBFixer, selection: Selection, links: list[Link], n_models: int, renamed: list[str]
) -> StructureFile:
    left_out = [f"kept the first of {n_models} models"] if n_models > 1 else []
    names = {row.place: row.residue for row in selection.rows if row is not None}
    for residue in fixer.topology.residues():  # OpenMM's reader takes DCY, a D residue, for the nucleotide DC
        if canonical_name(residue.name) is None and {"N", "CA", "C"} <= {atom.name for atom in residue.atoms()}:
            place = residue.chain.id, residue.id, residue.insertionCode.strip()
            residue.name = names.get(place, residue.name)
    return StructureFile(fixer, selection.protonation, links, [*left_out, *renamed, *selection.changes])


def _pdb_row(line: str, segment: int) -> AtomRow:
    line = line.ljust(80)
    name, fourth = line[17:20].strip(), line[20].strip()
    if fourth and name in RESIDUE_TYPES and canonical_name(name + fourth) is None:
        raise UnsupportedTopologyError(
            f"expected a chain name of one letter in column 22, found {line[20:22]!r} in columns 21 and 22 of {name} "
            f"{line[22:27].strip()}. The PDB format has no place for chain names of two letters: write the structure "
            "as mmCIF, or rename the chain."
        )
    occupancy = line[54:60].strip()
    return AtomRow(
        segment=segment,
        place=_pdb_place(line, 21, 22),
        residue=name + fourth,
        name=line[12:16].strip(),
        alternate=line[16].strip(),
        occupancy=float(occupancy) if occupancy else 1.0,
    )


def _pdb_place(line: str, chain: int, number: int) -> Place:
    """Place at two columns; residue numbers beyond 9999 are hexadecimal from A000 on, as OpenMM's reader takes them."""
    text, insertion = line[number : number + 4].strip(), line[number + 4].strip()
    if text.lstrip("-").isdigit():
        text = str(int(text))
    elif set(text) <= set(hexdigits) and text:
        text = str(int(text, 16) - _FIRST_HEX + 10_000)
    return line[chain], text, insertion


def _pdb_line(line: str, row: AtomRow) -> str:
    chain, number, insertion = row.place
    residue = f"{row.residue:>3}".ljust(4)
    number = number if len(number) < 5 else f"{int(number) - 10_000 + _FIRST_HEX:X}"
    line = f"{line[:16]} {residue}{chain}{number:>4}{insertion or ' '}{line[27:]}"
    if line[12:16].strip() == row.name:
        return line
    return f"{line[:12]}{f' {row.name:<3}' if len(row.name) < 4 else row.name}{line[16:76]:60} H"  # was deuterium


def _pdb_link(record: str, line: str) -> Link:
    starts = ((21, 22), (51, 52)) if record == "LINK" else ((15, 17), (29, 31))
    places = [_pdb_place(line, *start) for start in starts]
    atoms = (line[12:16].strip(), line[42:46].strip()) if record == "LINK" else ("SG", "SG")
    operators = line[59:65].strip(), line[66:72].strip()
    return Link(record, (places[0], atoms[0]), (places[1], atoms[1]), to_copy=operators[0] != operators[1])


def _recorded_disulfides(fixer: PDBFixer, records: list[str]) -> list[Link]:
    """Disulfides of CONECT records; OpenMM's reader makes others by distance."""
    pairs = set()
    for line in records:
        first, *others = (line[i : i + 5].strip() for i in range(6, min(len(line.rstrip()), 31), 5))
        pairs |= {frozenset((first, other)) for other in others}
    links = []
    for a, b in fixer.topology.bonds():
        if a.name == b.name == "SG" and frozenset((a.id, b.id)) in pairs:
            ends = [((r.chain.id, r.id, r.insertionCode.strip()), "SG") for r in (a.residue, b.residue)]
            links.append(Link("CONECT", *ends))
    return links


def _read_mmcif(text: str) -> StructureFile:
    """Read an mmCIF file; chains and residue numbers are the author's, where the file tells them."""
    blocks: list[DataContainer] = []
    PdbxReader(StringIO(text)).read(blocks)
    block = blocks[0]
    table = _Table(block.getObj("atom_site"))
    models = list(dict.fromkeys(table.column("pdbx_PDB_model_num", default="1")))
    first = [i for i, model in enumerate(table.column("pdbx_PDB_model_num", default="1")) if model == models[0]]
    labels = [table.first_of(i, "label_asym_id", "auth_asym_id") for i in first]
    segments = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    read = [_mmcif_row(table, i, segments[label]) for i, label in zip(first, labels, strict=True)]
    rows, renamed = name_chains_apart(read, set(labels))
    labels = [new.place[0] if new is not old else label for label, old, new in zip(labels, read, rows, strict=True)]
    selection = select(rows)
    sites = DataCategory("atom_site", list(_SITE_COLUMNS), _sites(table, first, labels, selection))
    reduced = DataContainer("structure")
    for category in (*(block.getObj(name) for name in _CATEGORIES), sites):
        if category is not None:
            reduced.append(category)
    file = StringIO()
    PdbxWriter(file).write([reduced])
    file.seek(0)
    fixer = PDBFixer(pdbxfile=file)
    author = {label: row.place[0] for label, row in zip(labels, rows, strict=True)}
    for chain in fixer.topology.chains():
        chain.id = author[chain.id]
    for record in (*fixer.sequences, *fixer.modifiedResidues):
        record.chainId = author.get(record.chainId, record.chainId)
    return _structure(fixer, selection, _mmcif_links(block), len(models), renamed)


class _Table:
    """Rows of an mmCIF category by the names of its columns."""

    def __init__(self, category: DataCategory):
        self.rows = category.getRowList()
        self._index = {name: i for i, name in enumerate(category.getAttributeList())}

    def get(self, row: int, name: str, default: str = "") -> str:
        """Value of a column; the default where it is absent or unknown."""
        value = self.rows[row][self._index[name]] if name in self._index else default
        return default if value in (".", "?") else value

    def first_of(self, row: int, *names: str) -> str:
        """Value of the first of the columns that has one."""
        return next((value for name in names if (value := self.get(row, name))), "")

    def column(self, name: str, default: str) -> list[str]:
        """All values of a column."""
        return [self.get(row, name, default) for row in range(len(self.rows))]


def _mmcif_row(table: _Table, i: int, segment: int) -> AtomRow:
    number = table.first_of(i, "auth_seq_id", "label_seq_id")
    return AtomRow(
        segment=segment,
        place=(table.first_of(i, "auth_asym_id", "label_asym_id"), number, table.get(i, "pdbx_PDB_ins_code")),
        residue=table.first_of(i, "auth_comp_id", "label_comp_id"),
        name=table.first_of(i, "auth_atom_id", "label_atom_id"),
        alternate=table.get(i, "label_alt_id"),
        occupancy=float(table.get(i, "occupancy", "1")),
    )


def _sites(table: _Table, numbers: list[int], labels: list[str], selection: Selection) -> list[list[str]]:
    """Rows of the reduced _atom_site."""
    sites, residues = [], {}
    for i, label, row in zip(numbers, labels, selection.rows, strict=True):
        if row is not None:
            sequence = residues.setdefault((label, row.place), len(residues) + 1)
            _, number, insertion = row.place
            place = label, str(sequence), number or str(sequence), insertion or "?"
            same = row.name == table.first_of(i, "auth_atom_id", "label_atom_id")
            element = table.get(i, "type_symbol", "?") if same else "H"  # was deuterium
            position = [table.get(i, f"Cartn_{axis}") for axis in "xyz"]
            sites.append([str(len(sites) + 1), row.name, row.residue, *place, element, ".", *position])
    return sites


def _mmcif_links(block: DataContainer) -> list[Link]:
    """Covalent bonds of _struct_conn."""
    category = block.getObj("struct_conn")
    if category is None:
        return []
    table, links = _Table(category), []
    for i in range(len(table.rows)):
        ends = []
        for k in (1, 2):
            chain = table.first_of(i, f"ptnr{k}_auth_asym_id", f"ptnr{k}_label_asym_id")
            number = table.first_of(i, f"ptnr{k}_auth_seq_id", f"ptnr{k}_label_seq_id")
            place = chain, number, table.get(i, f"pdbx_ptnr{k}_PDB_ins_code")
            ends.append((place, table.get(i, f"ptnr{k}_label_atom_id")))
        operators = table.get(i, "ptnr1_symmetry"), table.get(i, "ptnr2_symmetry")
        if table.get(i, "conn_type_id").startswith(("covale", "disulf")):
            links.append(Link("_struct_conn", *ends, to_copy=operators[0] != operators[1]))
    return links
