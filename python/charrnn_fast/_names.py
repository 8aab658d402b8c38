"""Other programs' names of our settings, so that errors can suggest ours.

The names are those of char-rnn and torch-rnn (Torch), char-rnn-tensorflow, char-rnn.pytorch,
PyTorch's word_language_model and layers, AWD-LSTM, Keras, nanoGPT and Hugging Face's `generate`.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection
from typing import ParamSpec, TypeVar

from ._checks import called

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Of difflib's ratio: "hiden_size" is near "hidden_size", "rnn_size" is not near "proj_size".
_NEAR = 0.8

# Our name, and other names whose values mean the same. If several of ours share another name, the
# first one that the command or function has counts.
_SAME = {
    "hidden_size": (
        "rnn_size hidden_dim hidden_units num_hidden num_hidden_units n_hidden nhid units "
        "num_units lstm_size state_size hidden n_embd d_model"
    ),
    "num_layers": "n_layers layers n_layer rnn_layers rnn_num_layers depth",
    "cell": "model model_type rnn_type rnn_cell cell_type unit_type",
    "seq_len": (
        "seq_length sequence_length sequence_len seqlen bptt block_size chunk_len chunk_size "
        "time_steps num_steps context_length unroll"
    ),
    "batch_size": "batch bs minibatch_size",
    "epochs": "max_epochs num_epochs n_epochs max_epoch num_train_epochs",
    "steps": "max_steps max_iters iterations iters num_iterations num_updates",
    "learning_rate": "lr learn_rate initial_lr base_lr eta step_size alpha",
    "lr": "learning_rate",
    "lr_decay": "learning_rate_decay lr_decay_factor lr_gamma gamma decay",
    "lr_decay_after": "learning_rate_decay_after",
    "schedule": "lr_schedule lr_scheduler scheduler",
    "final_lr": "final_learning_rate",
    "clip_norm": (
        "grad_clip clip clipnorm gradient_clip gradient_clipping clip_grad max_grad_norm "
        "max_norm clip_grad_norm"
    ),
    "clip_value": "clipvalue clip_grad_value",
    "optimizer": "optim optimiser opt",
    "micro_batches": "gradient_accumulation_steps accumulate accumulation_steps grad_accum",
    "evaluate_every": (
        "eval_val_every eval_interval eval_every val_interval validate_every validation_steps"
    ),
    "evaluate_length": "eval_length val_length",
    "checkpoint_every": "save_every save_interval save_steps checkpoint_interval",
    "average": "ema ema_decay averaging weight_averaging polyak swa asgd",
    "checkpoint_path": "output save savefile save_path checkpoint_dir save_dir out_dir",
    "output": (
        "checkpoint_dir checkpoint_name savefile save save_dir save_path out out_dir "
        "output_dir output_file model_name outf outfile"
    ),
    "validation": "val_data valid valid_data valid_file val_file dev_file validation_file",
    "test": "test_data test_file",
    "log": "log_file log_path",
    "tensorboard": "log_dir tensorboard_dir tb_dir",
    "log_every": "log_interval",
    "patience": "early_stopping early_stopping_patience nonmono",
    "init_from": "load restore pretrained load_from checkpoint",
    "resume": "continue restart",
    "text": (
        "data data_dir data_path input_txt input_file input train train_file train_path dataset "
        "corpus textfile"
    ),
    "model": "checkpoint checkpoint_path model_path load init_from out_dir model_file",
    "proj_size": "projection_size num_proj proj",
    "layer_norm": "layernorm layer_normalization",
    "weight_drop": "wdrop dropoutw",
    "input_dropout": "dropouti",
    "output_dropout": "dropouto",
    "dropout": "drop dropouth dropout_rate dropout_p drop_prob dropout_prob p_dropout",
    "variational": "variational_dropout locked_dropout",
    "seed": "random_seed rng_seed manual_seed",
    "threads": "num_threads n_threads num_workers workers cpus",
    "min_count": "min_freq min_frequency",
    "sample_length": "sample_len",
    "length": (
        "max_new_tokens max_length num_chars n_chars predict_len gen_len words n n_words "
        "num_characters"
    ),
    "prime": (
        "primetext start_text start start_string start_with prime_str prompt seed_text prefix"
    ),
    "prime_file": "prompt_file start_file",
    "temperature": "temp t",
    "top_k": "topk k",
    "top_p": "topp nucleus",
    "stop": "stop_text stop_string stop_sequence stop_sequences stop_strings",
    "beam": "num_beams beam_size beam_width",
    "repetition_penalty": "repeat_penalty rep_pen",
    "repetition_window": "repeat_last_n",
    "choices": "interactive",
    "num_samples": "num_return_sequences num_texts count",
    "seeds": "num_samples",
    "nonlinearity": "activation",
    "bidirectional": "bidir birnn",
    "output_size": "num_classes out_features",
    "input_size": "input_dim in_features",
    "init": "init_method initializer kernel_initializer",
    "weight_dtype": "dtype precision",
    "compute_dtype": "amp bf16 mixed_precision use_amp dtype precision",
    "vocabulary": "vocab",
}

# Names without such a setting here, and what to do. A name in braces is one of our settings.
_OTHERWISE = {
    "{device} takes cpu or cuda": (
        "gpu gpuid gpu_backend opencl cuda no_cuda cudnn mps accel use_gpu cpu accurate_gpu_timing "
        "backend local_rank"
    ),
    "leave it out, it runs on the CPU": "device",
    "leave it out, nothing is compiled when it runs": "compile jit",
    "leave it out, texts are read as they are, and need no preprocessing": (
        "input_h5 input_json output_h5 output_json preprocess vocab vocab_file vocab_size"
    ),
    "leave it out, a character is a row of the first layer's weights and has no embedding": (
        "wordvec_size emsize embedding_size embedding_dim embed_size emb_size embed_dim emb_dim "
        "input_encoding_size char_size tied tie_weights dropoute"
    ),
    "the last 10 % of the text are for validation, {split} takes other shares": (
        "train_frac val_frac test_frac validation_split val_split valid_size val_size"
    ),
    "leave it out, progress is told every ten seconds, and in full in the log": (
        "print_every print_cycle verbose quiet display_iteration"
    ),
    "there is {layer_norm}, which normalizes each step by itself": (
        "batchnorm batch_normalization bn"
    ),
    "{dropout} takes the share that is left out, which is 1 - keep": (
        "keep_prob dropout_keep dropout_keep_prob output_keep_prob input_keep_prob"
    ),
    "the learning rate falls at each step, by {lr_decay} per epoch": (
        "lr_decay_every decay_steps lr_decay_iters step_lr"
    ),
    "{warmup} takes epochs": "warmup_iters warmup_steps warmup_epochs",
    "{schedule} cosine falls to {final_lr}, a share of the learning rate": "min_lr eta_min",
    "{optimizer} has its usual constants; cf.optim.AdamW(model.rnn, weight_decay=0.1) has others": (
        "weight_decay wdecay l2 momentum decay_rate beta1 beta2 betas rho eps epsilon nesterov"
    ),
    "1 is how it works, and {temperature} 0 takes the most probable character": (
        "sample do_sample greedy argmax"
    ),
    "charrnn-fast bench measures the speed": "speed_benchmark memory_benchmark profile",
    "{resume} counts on, {init_from} begins anew": "reset_iterations",
    "arrays are [T, B, ...], time first; swap the first two axes": "batch_first time_major",
    "the state is carried by step(), and given to forward() as state": "stateful",
    "forward() returns all steps; the last one is y[-1]": "return_sequences return_state",
    "recurrent networks alone, which have no attention": "n_head num_heads",
}

_Ours = dict[str, tuple[str, ...]]


def _plain(name: str) -> str:
    """A name without the differences between tools: hyphens, underscores, capitals."""
    return name.replace("-", "").replace("_", "").lower()


def _by_name(table: dict[str, str]) -> _Ours:
    result: _Ours = {}
    for ours, names in table.items():
        for name in names.split():
            result[_plain(name)] = (*result.get(_plain(name), ()), ours)
    return result


_SETTINGS, _REMARKS = _by_name(_SAME), _by_name(_OTHERWISE)


def is_foreign(name: str) -> bool:
    """Whether other programs have a setting of this name."""
    return _plain(name) in _SETTINGS or _plain(name) in _REMARKS


def meant(name: str, known: Collection[str]) -> str | None:
    """The known name that an unknown one means: our name for it, or the correct spelling."""
    plain = {_plain(one): one for one in known}
    if _plain(name) in plain:
        return plain[_plain(name)]
    for ours in _SETTINGS.get(_plain(name), ()):
        if ours in known:
            return ours
    if _plain(name) in _REMARKS:
        return None
    # A typo hardly ever changes the first letter.
    rivals = [one for one in plain if one[0] == _plain(name)[:1]]
    near = difflib.get_close_matches(_plain(name), rivals, 1, _NEAR)
    return plain[near[0]] if near else None


def remark(name: str) -> str | None:
    """Advice for another program's setting that we do not have."""
    texts = _REMARKS.get(_plain(name))
    return None if texts is None else texts[0].format_map(_Called())


class _Called(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return called(name)


def suggesting(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Wraps function: its TypeError for an unknown keyword suggests the one that was meant."""
    parameters = inspect.signature(function).parameters
    known = [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    takes_any = len(known) < len(parameters)

    @functools.wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        for name in kwargs:
            if name not in parameters and not takes_any:
                ours = meant(name, known)
                advice = f"did you mean {ours!r}?" if ours else remark(name)
                raise TypeError(
                    f"{function.__qualname__}() got an unexpected keyword argument {name!r}"
                    + (f"; {advice}" if advice else "")
                )
        return function(*args, **kwargs)

    return checked
