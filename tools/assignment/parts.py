"""The table of the assignment: its parts, what each empties, and the classic mistakes it can recognise.

A mistake is a change to the source of the library's own solution. Running the part's probe with it gives the
numbers by which `check.py` names the mistake in a student's code. Its text completes "This is what comes out
...". Each name and each line quoted here must be in the library as it is: `make` stops if one is not.

The names of the parts are stable: the lessons' exercises refer to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from checks.judging import Part

BERT, OPTIM, MLM = Path("minbert/bert.py"), Path("minbert/optim.py"), Path("minbert/mlm.py")
MODEL, METHODS = Path("multitask/model.py"), Path("multitask/methods")
SAMPLING, LOSSES, SMART = METHODS / "sampling.py", METHODS / "losses.py", METHODS / "smart.py"
MNRL, BREGMAN = METHODS / "mnrl.py", METHODS / "bregman.py"


@dataclass(frozen=True)
class Mistake:
    text: str  # completes "This is what comes out ..."
    function: str  # by name; of the part's file
    old: str  # in the function's source, exactly once
    new: str


@dataclass(frozen=True, eq=False)
class Exercise:
    """A part as the teacher sees it."""

    name: str
    title: str
    points: int
    path: Path
    functions: tuple[str, ...]  # to be emptied
    about: str  # for the handout, in Markdown
    hint: str
    questions: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    removed: tuple[str, ...] = ()  # faster ways to do the same, which would give it away

    @property
    def part(self) -> Part:
        """The part as the student sees it."""
        where = f"{', '.join(self.functions)} in {self.path.as_posix()}" if self.functions else ""
        return Part(self.name, self.title, self.points, where, self.hint, self.questions, self.needs)


SCALE = " * (1 / math.sqrt(query.shape[-1]))"
ADD_MASK = "scores = scores + added_to_scores(mask).to(scores.dtype)"
SOFTMAX = f"{ADD_MASK}\n    weights = scores.softmax(dim=-1)"
MASK_AFTER = "pass\n    weights = scores.softmax(dim=-1)\n    if mask is not None:\n        weights = {}"

ATTENTION = Exercise(
    "attention", "Scaled dot-product attention", 15, BERT, ("attention",),
    """
    softmax(Q K^T / sqrt(d) + mask) V

Each of the A heads compares every query with every key; the softmax over the keys gives the weights with
which the values are averaged. `added_to_scores` turns any mask into what is added to the scores, and
`drop(x, p)` is dropout, which falls on the weights. The weights that are returned are from before it.""",
    hint="Write down the shape of every line: (B, A, Lq, d) and (B, A, L, d) give scores (B, A, Lq, L).",
    questions={
        "weights with no mask": "Are the scores query times key, scaled, and does softmax run over the keys?",
        "context with no mask": "Does each query average the values with its own weights?",
        "float mask": "Is what added_to_scores makes of the mask added to the scores, before softmax?",
        "boolean mask": "Does added_to_scores turn the mask into numbers?",
        "from before it": "Are the weights returned as they were before dropout?",
        "not on the context": "Does dropout fall on the weights?",
        "dropout .4": "Use drop(weights, dropout): it zeroes a share of the weights and multiplies the rest.",
    },
    mistakes=(
        Mistake("when the scores are not divided by the square root of d", "attention", SCALE, ""),
        Mistake("when the scores are divided by d, not by its square root", "attention",
                SCALE, " / query.shape[-1]"),
        Mistake("when the scores are multiplied by the square root of d", "attention",
                SCALE, " * math.sqrt(query.shape[-1])"),
        Mistake("when softmax runs over the queries, not over the keys", "attention", "dim=-1", "dim=-2"),
        Mistake("when softmax runs over the heads, not over the keys", "attention", "dim=-1", "dim=1"),
        Mistake("when softmax runs over the examples, not over the keys", "attention", "dim=-1", "dim=0"),
        Mistake("when the mask is subtracted, so that its sign is wrong", "attention",
                ADD_MASK, "scores = scores - added_to_scores(mask)"),
        Mistake("when the mask is ignored", "attention", ADD_MASK, "pass"),
        Mistake("when the mask is added to the scores before they are scaled", "attention",
                ADD_MASK, "scores = scores + added_to_scores(mask)" + SCALE),
        Mistake("when the scores are multiplied by the mask", "attention",
                ADD_MASK, "scores = scores * mask"),
        Mistake("when the mask hides what it should show, and shows what it should hide", "attention",
                ADD_MASK,
                "scores = scores + (mask if mask.is_floating_point() else added_to_scores(~mask))"),
        Mistake("when scores are overwritten where the mask is 0: a float mask is 0 where a key may be seen",
                "attention", ADD_MASK, "scores = scores.masked_fill(mask == 0, -1e9)"),
        Mistake("when the scores are multiplied by (mask == 0)", "attention",
                ADD_MASK, "scores = scores * (mask == 0)"),
        Mistake("when a float mask is taken for one of 1 and 0, as in (1 - mask) * -10000", "attention",
                ADD_MASK, "scores = scores + (1 - mask.float()) * -10000"),
        Mistake("when the weights are multiplied by the mask, after softmax", "attention",
                SOFTMAX, MASK_AFTER.format("weights * mask")),
        Mistake("when weights are set to 0 where the mask is 0, after softmax", "attention",
                SOFTMAX, MASK_AFTER.format("weights.masked_fill(mask == 0, 0.0)")),
        Mistake("when the mask is added to the weights, after softmax", "attention",
                SOFTMAX, MASK_AFTER.format("weights + added_to_scores(mask)")),
        Mistake("when there is no dropout", "attention", "drop(weights, dropout)", "weights"),
        Mistake("when dropout does not multiply what it keeps by 1 / (1 - p)", "attention",
                "drop(weights, dropout)", "(weights * (torch.rand_like(weights) >= dropout))"),
        Mistake("when dropout keeps an element with probability p, not 1 - p", "attention",
                "drop(weights, dropout)", "drop(weights, 1 - dropout if dropout else 0.0)"),
        Mistake("when dropout falls on the context, not on the weights", "attention",
                "drop(weights, dropout) @ value", "drop(weights @ value, dropout)"),
        Mistake("when the context and the weights are returned in the wrong order", "attention",
                "return drop(weights, dropout) @ value, weights",
                "return weights, drop(weights, dropout) @ value"),
        Mistake("when the weights are returned after dropout", "attention",
                "return drop(weights, dropout) @ value, weights",
                "weights = drop(weights, dropout)\n    return weights @ value, weights"),
    ),
)  # fmt: skip

SUM = "words + types + self.position(packing.positions)"
EMBED = Exercise(
    "embed", "Embeddings", 10, BERT, ("BertEmbeddings.forward",),
    """
    dropout(LayerNorm(word + position + token type))

The ids come as a padded batch, (B, L), and the result is packed, (T, H): `packing.pack` picks the real
tokens, and `packing.positions` has the place of each in its own row. Use the modules that
`__init__` has made, for dropout `self.dropout`: the check puts stand-ins in their places.""",
    hint="Three embeddings are added, then normalised, then comes dropout; all of them packed, (T, H).",
    questions={
        "sum": "Are word, position and token type all added, and are the positions those in each row?",
        "result": "Is the sum normalised, and does dropout come after that?",
    },
    mistakes=(
        Mistake("when the position embeddings are left out", "BertEmbeddings.forward",
                SUM, "words + types"),
        Mistake("when the token type embeddings are left out", "BertEmbeddings.forward",
                SUM, "words + self.position(packing.positions)"),
        Mistake("when the positions go on counting from one row of the batch to the next",
                "BertEmbeddings.forward", "self.position(packing.positions)",
                "self.position(torch.arange(len(words)))"),
        Mistake("when positions count from 1, not from 0", "BertEmbeddings.forward",
                "packing.positions", "packing.positions + 1"),
        Mistake("when every token has position 0", "BertEmbeddings.forward",
                "packing.positions", "packing.positions * 0"),
        Mistake("when the norm is left out", "BertEmbeddings.forward",
                f"self.norm({SUM})", f"({SUM})"),
        Mistake("when dropout is left out", "BertEmbeddings.forward",
                f"self.dropout(self.norm({SUM}))", f"self.norm({SUM})"),
        Mistake("when dropout comes before the norm", "BertEmbeddings.forward",
                f"self.dropout(self.norm({SUM}))", f"self.norm(self.dropout({SUM}))"),
    ),
)  # fmt: skip

FIRST_NORM = "self.attention_norm(rows + self.dropout(self.attention_output(context)))"
SECOND_NORM = "self.output_norm(rows + self.dropout(feed_forward))"
FIRST_SUBLAYER = f"""context, weights = self.attention(hidden_states, packing, first_only)
        rows = hidden_states[packing.first] if first_only else hidden_states
        rows = {FIRST_NORM}"""
PRE_NORM = """context, weights = self.attention(self.attention_norm(hidden_states), packing, first_only)
        rows = hidden_states[packing.first] if first_only else hidden_states
        rows = rows + self.dropout(self.attention_output(context))"""
LAYER = Exercise(
    "layer", "The transformer layer", 15, BERT, ("BertLayer.forward",),
    """
    y = LayerNorm(x + dropout(W_o attention(x)))
    z = LayerNorm(y + dropout(W_2 GELU(W_1 y)))

`self.attention` is the multi-head attention that is given: it returns the context and the weights. With
`first_only` it returns the context of each example's first token, so x is `hidden_states[packing.first]`.
GELU is the exact one, without the tanh approximation. Use the modules that `__init__` has made, for dropout
`self.dropout`: the check puts stand-ins in their places.""",
    hint="Two sub-layers, and around each: dropout, add what went in, then the norm.",
    questions={
        "attention output": "Does self.attention_output get the context?",
        "second add-and-norm": "Is the output added to what went into the feed-forward network, and "
        "is the norm after that?",
        "add-and-norm": "Is the residual added before the norm, and is dropout on what is added to it?",
        "GELU": "Which activation stands between the two linear layers?",
        "feed-forward output": "Does self.output get the activations?",
        "weights": "Are the weights those that self.attention returns?",
        "first_only": "With first_only, are the residual rows those of the first tokens?",
    },
    mistakes=(
        Mistake("when the residual is added after the norm", "BertLayer.forward",
                FIRST_NORM, "rows + self.attention_norm(self.dropout(self.attention_output(context)))"),
        Mistake("when there is no residual around attention", "BertLayer.forward",
                FIRST_NORM, "self.attention_norm(self.dropout(self.attention_output(context)))"),
        Mistake("when there is no norm after attention", "BertLayer.forward",
                FIRST_NORM, "rows + self.dropout(self.attention_output(context))"),
        Mistake("when there is no dropout after attention", "BertLayer.forward",
                FIRST_NORM, "self.attention_norm(rows + self.attention_output(context))"),
        Mistake("when dropout falls on the residual, too", "BertLayer.forward",
                FIRST_NORM, "self.attention_norm(self.dropout(rows + self.attention_output(context)))"),
        Mistake("when dropout comes after the norm", "BertLayer.forward",
                FIRST_NORM, "self.dropout(self.attention_norm(rows + self.attention_output(context)))"),
        Mistake("when the linear layer after attention is left out", "BertLayer.forward",
                "self.attention_output(context)", "context"),
        Mistake("when the norm comes before attention (pre-norm), not after it", "BertLayer.forward",
                FIRST_SUBLAYER, PRE_NORM),
        Mistake("when the activation is ReLU", "BertLayer.forward", "F.gelu(", "F.relu("),
        Mistake("when there is no activation", "BertLayer.forward", "F.gelu(", "("),
        Mistake("when GELU is approximated with tanh", "BertLayer.forward",
                "self.intermediate(rows)", "self.intermediate(rows), approximate='tanh'"),
        Mistake("when the residual is added after the second norm", "BertLayer.forward",
                SECOND_NORM, "rows + self.output_norm(self.dropout(feed_forward))"),
        Mistake("when the second residual is the layer's input", "BertLayer.forward",
                SECOND_NORM, "self.output_norm(hidden_states + self.dropout(feed_forward))"),
        Mistake("when there is no residual around the feed-forward network", "BertLayer.forward",
                SECOND_NORM, "self.output_norm(self.dropout(feed_forward))"),
        Mistake("when there is no dropout after the feed-forward network", "BertLayer.forward",
                SECOND_NORM, "self.output_norm(rows + feed_forward)"),
        Mistake("when attention's norm is used a second time, in place of output_norm", "BertLayer.forward",
                "self.output_norm", "self.attention_norm"),
    ),
)  # fmt: skip

ADAMW = Exercise(
    "adamw", "AdamW", 15, OPTIM, ("AdamW._update",),
    """
    m = b1 m + (1 - b1) g                        v = b2 v + (1 - b2) g^2
    m' = m / (1 - b1^t)                          v' = v / (1 - b2^t)
    theta = theta - lr weight_decay theta - lr m' / (sqrt(v') + eps)

One parameter, in place, at its own step t = 1, 2, ...; both theta on the right are the old one. Without
`correct_bias`, m' = m and v' = v. `_update` may ignore `group["compiled"]`.""",
    hint="Compare with the three lines of the class's docstring, from left to right.",
    questions={
        "exp_avg_sq": "Is v the average of the squared gradient, with b2?",
        "exp_avg": "Is m the average of the gradient alone, with b1, and starts at 0?",
        "the gradient": "Is the gradient left as it was given?",
        "scale": "Is the gradient multiplied by scale before anything else?",
        "without weight decay": "Are both moments corrected, with t = 1 at the first update?",
        "correct_bias=False": "Is correct_bias looked at?",
        "the parameter": "Are both moments corrected, and is the decay apart from them, times lr?",
    },
    removed=("CHUNK", "_chunks", "_in_one_pass", "_compiled"),
    mistakes=(
        Mistake("when the weight decay is added to the gradient, and so goes into the moments (L2)",
                "AdamW._update", "if scale != 1:\n                g = g * scale",
                'g = g * scale + group["weight_decay"] * theta\n            decays = False'),
        Mistake("when the bias is not corrected", "AdamW._update",
                "correction1, correction2 = 1 - beta1 ** state[\"step\"], 1 - beta2 ** state[\"step\"]",
                "correction1, correction2 = 1.0, 1.0"),
        Mistake("when only m is corrected", "AdamW._update",
                "correction1, correction2 = 1 - beta1 ** state[\"step\"], 1 - beta2 ** state[\"step\"]",
                "correction1, correction2 = 1 - beta1 ** state[\"step\"], 1.0"),
        Mistake("when only v is corrected", "AdamW._update",
                "correction1, correction2 = 1 - beta1 ** state[\"step\"], 1 - beta2 ** state[\"step\"]",
                "correction1, correction2 = 1.0, 1 - beta2 ** state[\"step\"]"),
        Mistake("when the bias is corrected although correct_bias is False", "AdamW._update",
                'if group["correct_bias"]:', "if True:"),
        Mistake("when the step stays at 1, so that every correction is that of the first update",
                "AdamW._update", 'state["step"] += 1', 'state["step"] = 1'),
        Mistake("when the step is counted from 1 before the first update, so that t starts at 2",
                "AdamW._update", 'state["step"] += 1', 'state["step"] += 1 + (state["step"] == 0)'),
        Mistake("when the decay is not multiplied by the learning rate", "AdamW._update",
                'decay = 1 - group["lr"] * group["weight_decay"]', 'decay = 1 - group["weight_decay"]'),
        Mistake("when there is no weight decay", "AdamW._update",
                "if decays:", "if False:"),
        Mistake("when the decay is taken of the parameter after its update", "AdamW._update",
                "            if decays:\n                theta.mul_(decay)\n            # 1 / rsqrt(v) for "
                "sqrt(v): MKL's sqrt is 5 times as slow at 0, 30 times at denormal numbers.\n"
                "            theta.addcdiv_(m, v.rsqrt().reciprocal_().add_(floor), value=-rate)",
                "            theta.addcdiv_(m, v.rsqrt().reciprocal_().add_(floor), value=-rate)\n"
                "            if decays:\n                theta.mul_(decay)"),
        Mistake("when the gradient goes up, not down", "AdamW._update", "value=-rate", "value=rate"),
        Mistake("when m is divided by v, without its square root", "AdamW._update",
                "v.rsqrt().reciprocal_().add_(floor)",
                '(v / math.sqrt(correction2)).add_(floor)'),
        Mistake("when eps is inside the square root", "AdamW._update",
                "v.rsqrt().reciprocal_().add_(floor)",
                '(v + correction2 * group["eps"]).sqrt()'),
        Mistake("when eps is added to sqrt(v), not to the corrected sqrt(v')", "AdamW._update",
                'floor = group["eps"] * math.sqrt(correction2)', 'floor = group["eps"]'),
        Mistake("when b1 and b2 are exchanged", "AdamW._update",
                'beta1, beta2 = group["betas"]', 'beta2, beta1 = group["betas"]'),
        Mistake("when v averages the gradient, not its square", "AdamW._update",
                "addcmul_(g, g, value=1 - beta2)", "add_(g, alpha=1 - beta2)"),
        Mistake("when m adds the whole gradient: the factor 1 - b1 is missing", "AdamW._update",
                "m.lerp_(g, 1 - beta1)", "m.mul_(beta1).add_(g)"),
        Mistake("when v adds the whole square: the factor 1 - b2 is missing", "AdamW._update",
                "value=1 - beta2", "value=1"),
        Mistake("when new m and v are computed, but not stored in self.state[parameter]", "AdamW._update",
                "m.lerp_(g, 1 - beta1)\n            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)",
                "m, v = m.lerp(g, 1 - beta1), (v * beta2).addcmul(g, g, value=1 - beta2)"),
        Mistake("when the parameter is not changed in place: it stays as it was", "AdamW._update",
                "_chunks(*tensors)", "_chunks(parameter.clone(), *tensors[1:])"),
        Mistake("when t is counted from 0, so that the first correction divides by 1 - b^0, which is 0",
                "AdamW._update",
                "theta.addcdiv_(m, v.rsqrt().reciprocal_().add_(floor), value=-rate)",
                'theta.addcdiv_(m, v.rsqrt().reciprocal_().add_(floor), value=-rate)\n'
                '            if group["correct_bias"]:\n                theta.fill_(math.nan)'),
        Mistake("when m and v are not kept from one update to the next", "AdamW._update",
                "if not state:", 'if not state or state["exp_avg"].zero_() is state["exp_avg_sq"].zero_():'),
        Mistake("when `scale` is ignored", "AdamW._update", "if scale != 1:", "if False:"),
        Mistake("when the gradient is scaled in place, so that the caller's is changed", "AdamW._update",
                "g = g * scale", "g.mul_(scale)"),
    ),
)  # fmt: skip

LOGITS = "self.heads[task](self.dropout(pooled)) * self.tasks[task].unit"
HEADS = Exercise(
    "heads", "The heads", 5, MODEL, ("MultitaskBert.logits_from_embeddings",),
    """
    logits = unit (W_task dropout(pooled) + b_task)

One linear layer for each task, in `self.heads`, on the vector that `self.pooled_from_embeddings` makes of
every example. `self.tasks[task].unit` is how much of a label one unit of the head's output stands for.""",
    hint="Pool with self.pooled_from_embeddings, then dropout, the task's head, the task's unit.",
    questions={
        "regression": "Is the output in the task's unit?",
        "dropout": "Does dropout come between pooling and head?",
        "logits": "Does each task have its own head, and are these logits, not probabilities?",
    },
    mistakes=(
        Mistake("when one task's head answers for all tasks", "MultitaskBert.logits_from_embeddings",
                "self.heads[task]", "next(iter(self.heads.values()))"),
        Mistake("when the unit of the task is left out", "MultitaskBert.logits_from_embeddings",
                LOGITS, "self.heads[task](self.dropout(pooled))"),
        Mistake("when dropout is left out", "MultitaskBert.logits_from_embeddings",
                "self.dropout(pooled)", "pooled"),
        Mistake("when dropout falls on the logits", "MultitaskBert.logits_from_embeddings",
                LOGITS, "self.dropout(self.heads[task](pooled)) * self.tasks[task].unit"),
        Mistake("when probabilities are returned, not logits", "MultitaskBert.logits_from_embeddings",
                LOGITS, f"({LOGITS}).softmax(dim=1)"),
    ),
)  # fmt: skip

ANNEALED = Exercise(
    "annealed", "Annealed sampling", 5, SAMPLING, ("annealed_alpha", "task_probabilities"),
    """
    p_i = N_i^alpha / sum_j N_j^alpha,    alpha = 1 - 0.8 (e - 1) / (E - 1)

in epoch e of E, counted from 1 (Stickland and Murray 2019): tasks are drawn by their size at first, and
almost evenly in the end. A single epoch has alpha 1.""",
    hint="What are alpha and the probabilities in the first epoch, and what in the last?",
    questions={
        "of 1": "A single epoch: what would be divided by zero?",
        "alpha in": "Is alpha 1 in the first epoch and .2 in the last?",
        "probabilities": "Is alpha the exponent, and do the probabilities sum to 1?",
    },
    mistakes=(
        Mistake("when alpha rises over the epochs, the wrong way: from .2 to 1", "annealed_alpha",
                "1 - 0.8 * (epoch - 1) / (epochs - 1)", "0.2 + 0.8 * (epoch - 1) / (epochs - 1)"),
        Mistake("when alpha is divided by E, not by E - 1", "annealed_alpha",
                "/ (epochs - 1)", "/ epochs"),
        Mistake("when the epochs are counted from 0", "annealed_alpha",
                "(epoch - 1) / (epochs - 1)", "epoch / (epochs - 1)"),
        Mistake("when alpha falls to 0, not to .2", "annealed_alpha", "0.8 * ", ""),
        Mistake("when a single epoch divides by zero", "annealed_alpha", "1.0 if epochs == 1 else ", ""),
        Mistake("when the sizes are multiplied by alpha, which is their exponent", "task_probabilities",
                "np.asarray(sizes) ** alpha", "np.asarray(sizes) * alpha"),
        Mistake("when the exponent is 1 / alpha, not alpha", "task_probabilities",
                "** alpha", "** (1 / alpha if alpha else 0.0)"),
        Mistake("when the exponent is -alpha: small tasks are drawn most", "task_probabilities",
                "** alpha", "** -alpha"),
        Mistake("when the exponent is 1 - alpha, the wrong way round", "task_probabilities",
                "** alpha", "** (1 - alpha)"),
        Mistake("when the probabilities do not sum to 1", "task_probabilities",
                "weights / weights.sum()", "weights"),
        Mistake("when alpha is left out", "task_probabilities", "** alpha", "** 1.0"),
        Mistake("when the share of each task is normalised before the power, and not after it",
                "task_probabilities", "return weights / weights.sum()",
                "return (np.asarray(sizes) / np.sum(sizes)) ** alpha"),
    ),
)  # fmt: skip

KL_SUM = "((log_p.exp() - log_q.exp()) * (log_p - log_q))"
KL_COLUMN = "((logits_p.sigmoid() - logits_q.sigmoid()) * (logits_p - logits_q)).mean()"
KL_ONE = "logits_p.sigmoid() * (F.logsigmoid(logits_p) - F.logsigmoid(logits_q)) + (-logits_p).sigmoid() * " \
    "(F.logsigmoid(-logits_p) - F.logsigmoid(-logits_q))"  # fmt: skip
SYMMETRIC_KL = Exercise(
    "symmetric-kl", "Symmetric KL divergence", 5, LOSSES, ("symmetric_kl",),
    """
    KL(P||Q) + KL(Q||P),    KL(P||Q) = sum_c p_c (log p_c - log q_c)

The sum of both directions, and the mean over the examples. P and Q are given by their logits. A single
column is the logit of a Bernoulli distribution, sigmoid(logit) against 1 - sigmoid(logit).""",
    hint="Compute it by hand for p = (.75, .25) and q = (.5, .5): the docstring has the answer.",
    questions={
        "three classes: the divergence": "Are both directions in the sum over the classes, and is it the "
        "mean over the examples?",
        "three classes: its gradient": "Does the gradient flow to both sides?",
        "a single column": "A single logit stands for two classes: what is the probability of the other?",
    },
    mistakes=(
        Mistake("when only one direction is computed: KL(P||Q)", "symmetric_kl",
                KL_SUM, "(log_p.exp() * (log_p - log_q))"),
        Mistake("when only one direction is computed: KL(Q||P)", "symmetric_kl",
                KL_SUM, "(log_q.exp() * (log_q - log_p))"),
        Mistake("when the sum of both directions is halved", "symmetric_kl",
                ".sum(dim=1).mean()", ".sum(dim=1).mean() / 2"),
        Mistake("when the mean is over the classes, too", "symmetric_kl", ".sum(dim=1).mean()", ".mean()"),
        Mistake("when the examples are summed up, not averaged", "symmetric_kl",
                ".sum(dim=1).mean()", ".sum()"),
        Mistake("when softmax runs over the examples, not over the classes", "symmetric_kl",
                "logits_p.log_softmax(dim=1), logits_q.log_softmax(dim=1)",
                "logits_p.log_softmax(dim=0), logits_q.log_softmax(dim=0)"),
        Mistake("when the logits are taken for log-probabilities, without a softmax", "symmetric_kl",
                "logits_p.log_softmax(dim=1), logits_q.log_softmax(dim=1)", "logits_p, logits_q"),
        Mistake("when no gradient flows to Q", "symmetric_kl",
                "logits_q.log_softmax(dim=1)", "logits_q.log_softmax(dim=1).detach()"),
        Mistake("when no gradient flows to P", "symmetric_kl",
                "logits_p.log_softmax(dim=1)", "logits_p.log_softmax(dim=1).detach()"),
        Mistake("when a single column goes through softmax, which makes it 1 whatever it is", "symmetric_kl",
                "if logits_p.shape[1] == 1:", "if False:"),
        Mistake("when only one class of a single column is counted: the other has 1 - p", "symmetric_kl",
                KL_COLUMN, "((logits_p.sigmoid() - logits_q.sigmoid()) * "
                "(F.logsigmoid(logits_p) - F.logsigmoid(logits_q))).mean()"),
        Mistake("when a single column has only one direction: KL(P||Q)", "symmetric_kl",
                KL_COLUMN, f"({KL_ONE}).mean()"),
    ),
)  # fmt: skip

BALL = "return project(noise + step_size * steepest(gradient, p), epsilon, p), gradient"
NORMALIZE = "return stepped / (token_norm(stepped, p) + epsilon), gradient"
SMART_STEP = Exercise(
    "smart", "SMART's inner step", 10, SMART, ("ascend", "steepest", "project"),
    """
    "ball":       noise = project(noise + step_size steepest(g))      onto ||noise||_p <= epsilon
    "normalize":  noise = (noise + step_size g) / (||noise + step_size g||_p + epsilon)

g is the gradient of the divergence with respect to the noise, set to 0 at padding, and steepest(g) the
direction of norm 1 in which it rises fastest: sign(g) for p = inf, g / ||g||_2 for p = 2. Every norm is
that of one token, see `token_norm`. No graph may stay attached to the noise that is returned.""",
    hint="torch.autograd.grad of divergence(noise), where noise is a leaf that requires a gradient.",
    questions={
        "steepest": "Has the direction norm 1 at each token, and is it 0 where the gradient is 0?",
        "project": "Does noise inside the ball stay as it is, and is the rest brought to its surface?",
        "the gradient": "Is the gradient that at the old noise, and 0 at padding?",
        "requires": "Is the noise detached from the graph?",
        "ball": "Is it one step along steepest(g), uphill, and projected after that?",
        "normalize": "Is the norm that of the noise after the step?",
    },
    mistakes=(
        Mistake("when the gradient is not normalised", "steepest",
                "gradient / token_norm(gradient, p).clamp_min(TINY)", "gradient"),
        Mistake("when the norm is that of the whole batch, not of each token", "steepest",
                "token_norm(gradient, p)", "gradient.norm()"),
        Mistake("when a gradient of 0 is divided by its norm, which gives NaN", "steepest",
                ".clamp_min(TINY)", ""),
        Mistake("when p = inf divides by the largest element, and does not take the sign", "steepest",
                "gradient.sign()", "gradient / token_norm(gradient, p).clamp_min(TINY)"),
        Mistake("when noise inside the ball is stretched to its surface", "project", ".clamp_max(1.0)", ""),
        Mistake("when nothing is projected", "project",
                "noise * (epsilon / token_norm(noise, p).clamp_min(TINY)).clamp_max(1.0)", "noise"),
        Mistake("when p = inf projects by scaling the token, not by cutting each element", "project",
                "noise.clamp(-epsilon, epsilon)",
                "noise * (epsilon / token_norm(noise, p).clamp_min(TINY)).clamp_max(1.0)"),
        Mistake("when every element is cut to epsilon where p = 2: that is the cube, not the ball", "project",
                "noise * (epsilon / token_norm(noise, p).clamp_min(TINY)).clamp_max(1.0)",
                "noise.clamp(-epsilon, epsilon)"),
        Mistake("when the step in the ball is not projected", "ascend",
                BALL, "return noise + step_size * steepest(gradient, p), gradient"),
        Mistake("when the step in the ball takes the gradient as it is, not normalised", "ascend",
                BALL, "return project(noise + step_size * gradient, epsilon, p), gradient"),
        Mistake("when only the step is projected, and not the noise after it", "ascend",
                BALL, "return noise + project(step_size * steepest(gradient, p), epsilon, p), gradient"),
        Mistake("when the noise goes downhill", "ascend",
                "noise + step_size * steepest", "noise - step_size * steepest"),
        Mistake("when the noise is not detached from the graph", "ascend",
                "noise = noise.detach()\n    if", "if"),
        Mistake("when padding is moved, too", "ascend", "gradient = gradient * real\n    ", ""),
        Mistake("when the gradient is normalised in the mode normalize, whose step takes it as it is",
                "ascend", "stepped = noise + step_size * gradient",
                "stepped = noise + step_size * steepest(gradient, p)"),
        Mistake("when the mode normalize leaves out epsilon", "ascend",
                "(token_norm(stepped, p) + epsilon)", "token_norm(stepped, p).clamp_min(TINY)"),
        Mistake("when the mode normalize does not divide by the norm", "ascend",
                NORMALIZE, "return stepped, gradient"),
        Mistake("when the mode normalize always takes the 2-norm", "ascend",
                "token_norm(stepped, p)", "token_norm(stepped, 2.0)"),
    ),
)  # fmt: skip

SCORES = "scale * F.normalize(a, dim=1) @ F.normalize(b, dim=1).T"
TARGETS = "torch.arange(len(a), device=a.device)"
MNRL_LOSS = Exercise(
    "mnrl", "Multiple negatives ranking loss", 10, MNRL, ("multiple_negatives_ranking_loss",),
    """
    S = C A B^T,      loss = mean over i of cross-entropy(S_i, i)

A and B are the unit vectors of the rows of a and b, C is `scale`: a_i has to find b_i among all b.""",
    hint="K x K scores, and the right answer of row i is column i.",
    questions={
        "loss": "Are the rows unit vectors, is the scale there, and is the right answer on the diagonal?",
        "gradient": "Does the gradient flow to both a and b?",
    },
    mistakes=(
        Mistake("when the rows are not normalised", "multiple_negatives_ranking_loss",
                SCORES, "scale * a @ b.T"),
        Mistake("when only one side is normalised", "multiple_negatives_ranking_loss",
                SCORES, "scale * F.normalize(a, dim=1) @ b.T"),
        Mistake("when the columns are normalised, not the rows", "multiple_negatives_ranking_loss",
                SCORES, "scale * F.normalize(a, dim=0) @ F.normalize(b, dim=0).T"),
        Mistake("when the scale is left out", "multiple_negatives_ranking_loss", "scale * ", ""),
        Mistake("when the scores are divided by the scale", "multiple_negatives_ranking_loss",
                "scale * ", "1 / scale * "),
        Mistake("when the right answer of each row is taken to be column 0, not the diagonal",
                "multiple_negatives_ranking_loss", TARGETS, "torch.zeros(len(a), dtype=torch.long)"),
        Mistake("when the right answers are on the wrong diagonal", "multiple_negatives_ranking_loss",
                TARGETS, "torch.arange(len(a)).flip(0)"),
        Mistake("when the right answers are one place off the diagonal", "multiple_negatives_ranking_loss",
                TARGETS, "torch.arange(len(a)).roll(1)"),
        Mistake("when each b looks for its a: softmax runs over the wrong axis",
                "multiple_negatives_ranking_loss", "F.cross_entropy(scores,", "F.cross_entropy(scores.T,"),
        Mistake("when the loss is averaged over both directions, a to b and b to a",
                "multiple_negatives_ranking_loss", f"F.cross_entropy(scores, {TARGETS})",
                f"(F.cross_entropy(scores, {TARGETS}) + F.cross_entropy(scores.T, {TARGETS})) / 2"),
        Mistake("when the losses are summed up, not averaged", "multiple_negatives_ranking_loss",
                TARGETS, f"{TARGETS}, reduction='sum'"),
        Mistake("when the softmax is left out: only the right pairs count", "multiple_negatives_ranking_loss",
                f"F.cross_entropy(scores, {TARGETS})", "-scores.diagonal().mean()"),
        Mistake("when a softmax comes before the cross-entropy, which has one of its own",
                "multiple_negatives_ranking_loss", "F.cross_entropy(scores,",
                "F.cross_entropy(scores.softmax(dim=1),"),
        Mistake("when the right pairs are missing from the softmax", "multiple_negatives_ranking_loss",
                f"F.cross_entropy(scores, {TARGETS})",
                "(scores - 1e9 * torch.eye(len(a))).logsumexp(dim=1).sub(scores.diagonal()).mean()"),
        Mistake("when a is compared with itself", "multiple_negatives_ranking_loss",
                "F.normalize(b, dim=1)", "F.normalize(a, dim=1)"),
    ),
)  # fmt: skip

LERP = "mine.lerp_(theirs, 1 - self.beta)"
TEACHER = Exercise(
    "teacher", "BPPO's teacher", 5, BREGMAN, ("MomentumTeacher.update",),
    """
    teacher = (1 - beta) student + beta teacher

for every parameter, in place, without a gradient. The teacher's weights are those of `self.model`, the
student's those of `self.student`.""",
    hint="beta is near 1, and the teacher moves slowly: how much of the student comes in at each update?",
    questions={
        "student": "Does the student stay as it is?",
        "bias": "Is every parameter averaged?",
        "weight": "How much of the student goes in, and how much of the teacher stays?",
    },
    mistakes=(
        Mistake("when beta is the wrong way round: the teacher takes beta of the student",
                "MomentumTeacher.update", LERP, "mine.lerp_(theirs, self.beta)"),
        Mistake("when the teacher becomes a copy of the student", "MomentumTeacher.update",
                LERP, "mine.copy_(theirs)"),
        Mistake("when the student is updated, not the teacher", "MomentumTeacher.update",
                LERP, "theirs.lerp_(mine, 1 - self.beta)"),
        Mistake("when the teacher never changes", "MomentumTeacher.update", LERP, "pass"),
        Mistake("when the student is added without the factor 1 - beta", "MomentumTeacher.update",
                LERP, "mine.mul_(self.beta).add_(theirs)"),
        Mistake("when the teacher does not keep only beta of itself", "MomentumTeacher.update",
                LERP, "mine.add_(theirs, alpha=1 - self.beta)"),
        Mistake("when the biases are left out", "MomentumTeacher.update",
                LERP, "mine.lerp_(theirs, (1 - self.beta) * (mine.ndim > 1))"),
    ),
)  # fmt: skip

MASKED = "masked = input_ids.masked_fill(chosen & (lots < 0.8), mask_token_id)"
REPLACED = "torch.where(chosen & (lots >= 0.9), replacements, masked)"
MASKING = Exercise(
    "mlm", "Masking for masked language modelling", 5, MLM, ("mask_tokens",),
    """
Of each row's tokens that may be chosen (`words` is not -1), a fraction `rate`, rounded, and at least one.
Of those chosen, 80% become [MASK], 10% a random token of the vocabulary, and 10% stay as they are. Tokens
with the same number in `words` are one word, and chosen together. The same generator state gives the same
result, and `input_ids` stays as it is.""",
    hint="Draw one number for each token to say whether it is chosen, and another to say what becomes of it.",
    questions={
        "left alone": "Is input_ids changed in place?",
        "special": "May tokens with -1 in `words` be chosen?",
        "not chosen": "Do tokens change that are not chosen?",
        "share of the chosen": "What are the shares of [MASK], random tokens and unchanged ones?",
        "by row": "Is it a fraction of the tokens that may be chosen, rounded, and at least one?",
        "other tokens": "Are the random tokens drawn from the whole vocabulary?",
        "mean place": "Is each place equally likely to be chosen?",
        "generator": "Does every draw use `generator`?",
        "words of two": "Do all tokens of a word share one draw?",
    },
    mistakes=(
        Mistake("when special tokens and padding are chosen, too", "mask_tokens",
                "maskable, first = words >= 0, words.clamp(min=0)",
                "maskable = torch.ones_like(words, dtype=torch.bool)\n"
                "    first = torch.arange(words.shape[1]).expand_as(words)"),
        Mistake("when the ids are changed in place", "mask_tokens",
                MASKED, "masked = input_ids.masked_fill_(chosen & (lots < 0.8), mask_token_id)"),
        Mistake("when tokens are masked that are not chosen", "mask_tokens",
                MASKED, "masked = input_ids.masked_fill(maskable & (lots < 0.12), mask_token_id)"),
        Mistake("when every chosen token becomes [MASK]: 100/0/0, not 80/10/10", "mask_tokens",
                MASKED, "return input_ids.masked_fill(chosen, mask_token_id), chosen"),
        Mistake("when no chosen token stays as it is: 80/20/0, not 80/10/10", "mask_tokens",
                "lots >= 0.9", "lots >= 0.8"),
        Mistake("when no chosen token becomes a random one: 80/0/20, not 80/10/10", "mask_tokens",
                REPLACED, "masked"),
        Mistake("when random tokens and [MASK] are exchanged: 10/80/10, not 80/10/10", "mask_tokens",
                REPLACED, "torch.where(chosen & (lots < 0.8), replacements, "
                "input_ids.masked_fill(chosen & (lots >= 0.9), mask_token_id))"),
        Mistake("when 90% become [MASK] and no chosen token stays: 90/10/0, not 80/10/10", "mask_tokens",
                "lots < 0.8", "lots < 0.9"),
        Mistake("when a short row has no token to guess: at least one must be chosen", "mask_tokens",
                ".clamp(min=1)", ""),
        Mistake("when the fraction is of the whole row, special tokens and padding included", "mask_tokens",
                "maskable.sum(dim=1, keepdim=True)", "maskable.shape[1] * torch.ones(len(words), 1)"),
        Mistake("when the fraction is rounded down, not to the nearest number", "mask_tokens",
                ".round()", ".floor()"),
        Mistake("when always the first tokens of a row are chosen", "mask_tokens",
                "draws.gather(1, first)", "first.float().div(999)"),
        Mistake("when the draws do not come from the generator", "mask_tokens",
                "draws = torch.rand(input_ids.shape, generator=generator)",
                "draws = torch.rand(input_ids.shape)"),
        Mistake("when tokens are chosen one by one, not in words", "mask_tokens",
                "words.clamp(min=0)", "torch.arange(words.shape[1]).expand_as(words)"),
    ),
)  # fmt: skip

WHOLE = Exercise(
    "model", "The whole encoder", 0, BERT, (),
    """
The tiny checkpoint in `weights/tiny` on three sentences, stage by stage. It waits for `attention`, `embed`
and `layer`, and has no points of its own.""",
    hint="Run `python check.py attention embed layer` first.",
    questions={
        "scores": "Does `attention` pass? Then look at what it gets: queries, keys and masks.",
        "add-and-norm": "Is the residual added before the norm?",
    },
    needs=("attention", "embed", "layer"),
)  # fmt: skip

EXERCISES = (
    ATTENTION, EMBED, LAYER, WHOLE, ADAMW, HEADS,
    ANNEALED, SYMMETRIC_KL, SMART_STEP, MNRL_LOSS, TEACHER, MASKING,
)  # fmt: skip
