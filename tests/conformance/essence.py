"""What of an engine's source file decides how a checkpoint loads, as short statements that can be compared.

By syntax tree, so that comments, formatting, annotations, docstrings and logging say nothing. Of model classes: which
layers they make, with which quantization, under which prefix and condition; which names they map. Of everything: the
text of matchers and loaders, constant tables, and the errors that can be raised.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator

LAYER = re.compile(
    r"(Linear|Embedding|LMHead|MoE|Experts|Norm\w*|Attention|Conv\w*|MLP|DecoderLayer|Layer|Proj)$|^make_layers$"
)
"""Callees that make a part of a model."""

BODY = re.compile(
    r"load_weights|weight_loader|_load_\w+|load_\w+|get_spec_layer\w*|_rewrite\w*|_remap\w*|is_layer_\w+|should_ignore\w*|"
    r"find_matched\w*|_?match\w*|_is_\w+|apply_vllm_mapper|apply_weight_name_mapper|get_quant_method|get_quant_config|"
    r"override_quantization_method|_?from_config|get_cache_scale|_maybe_share\w*|maybe_share\w*|_?resolve\w*|"
    r"process_weights_after_loading|create_weights|hf_config_override|_extract\w*|_?parse_quant\w*|_verify_quantization"
)
"""Functions whose whole text counts: loaders, matchers, and what chooses the method."""

TABLE = re.compile(r"mapp(ing|er)|packed|METHODS|ALGOS?|MODELS|MTPModelTypes|_algos?$|stacked_params", re.IGNORECASE)
"""Names of constants and attributes whose value counts."""

RUNNING = re.compile(
    r"\w*forward\w*|apply|apply_\w*weights|get_kv_cache\w*|get_state_\w+|verify_with_\w+|_get_mm_\w+|_get_per_\w+|"
    r"_parse_and_validate\w*|get_num_\w+|_?compute_\w+|_call_\w+|embed_\w+|get_mamba_\w+"
)
"""Functions that run after a model was loaded, or count and schedule: nothing in them decides how it loads."""

SILENT = ("logger", "warnings", "log")


def essence(text: str | None) -> Counter[str]:
    """Return the statements of a source file, with how often each is made; none for a file that is not there."""
    return Counter(_statements(_Quiet().visit(ast.parse(text)), "") if text else ())


class _Quiet(ast.NodeTransformer):
    """Take away what says nothing: docstrings, annotations, logging."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        value = node.value
        if isinstance(value, ast.Constant):
            return None
        if isinstance(value, ast.Call) and ast.unparse(value.func).partition(".")[0] in SILENT:
            return None
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        self.generic_visit(node)
        return ast.copy_location(ast.Assign([node.target], node.value), node) if node.value is not None else None

    def visit_If(self, node: ast.If) -> ast.AST | None:
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node


def _statements(node: ast.AST, where: str, condition: str = "") -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            inside = f"{where}.{child.name}".lstrip(".")
            yield f"{inside}: class of {', '.join(map(ast.unparse, child.bases)) or 'nothing'}"
            yield from _statements(child, inside, condition)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if RUNNING.fullmatch(child.name):
                continue
            inside = f"{where}.{child.name}".lstrip(".")
            if BODY.fullmatch(child.name):
                yield f"{inside}: text {ast.unparse(ast.Module(child.body, []))}"
            yield from _statements(child, inside, condition)
        elif isinstance(child, ast.If):
            test = ast.unparse(child.test)
            yield from _statements(ast.Module(child.body, []), where, f"{condition} if {test}")
            yield from _statements(ast.Module(child.orelse, []), where, f"{condition} unless {test}")
        else:
            yield from _said(child, where, condition)
            assigned = child.value if isinstance(child, ast.Assign) else None
            made = isinstance(assigned, ast.Call) and _makes(assigned)  # said as what it makes: look only below
            yield from _statements(assigned if made and assigned else child, where, condition)


def _said(node: ast.AST, where: str, condition: str) -> Iterator[str]:
    """Yield what one statement or expression says."""
    match node:
        case ast.Raise(exc=error) if error is not None:
            yield f"{where}: raises {ast.unparse(error)}{condition}"
        case ast.Assert(test=test):
            yield f"{where}: asserts {ast.unparse(test)}{condition}"
        case ast.Assign(targets=[target], value=ast.Dict(keys=keys, values=values)) if TABLE.search(
            ast.unparse(target)
        ):
            name = ast.unparse(target)
            for key, value in zip(keys, values, strict=True):
                yield f"{where}: {name}[{ast.unparse(key) if key else '**'}] = {ast.unparse(value)}{condition}"
        case ast.Assign(targets=[target], value=value) if TABLE.search(ast.unparse(target)):
            yield f"{where}: {ast.unparse(target)} = {ast.unparse(value)}{condition}"
        case ast.Assign(targets=[target], value=value) if "quant" in ast.unparse(target):
            yield f"{where}: {ast.unparse(target)} = {ast.unparse(value)}{condition}"
        case ast.Assign(targets=[target], value=ast.Call() as call) if _makes(call):
            yield f"{where}: {ast.unparse(target)} made by {_call(call)}{condition}"
        case ast.Call() if any(one.arg in ("quant_config", "prefix") for one in node.keywords):
            yield f"{where}: passes {_call(node)}{condition}"


def _makes(call: ast.Call) -> bool:
    return bool(LAYER.search(ast.unparse(call.func).rpartition(".")[2]))


def _call(call: ast.Call) -> str:
    """Return a call with the arguments that decide: the quantization, the prefix, and any that is a constant."""
    kept = [
        f"{one.arg}={ast.unparse(one.value)}"
        for one in call.keywords
        if one.arg in ("quant_config", "prefix") or isinstance(one.value, ast.Constant)
    ]
    return f"{ast.unparse(call.func)}({', '.join(kept)})"
