"""What a server's processes see of our environment: not its secrets."""

import os

EXTRA_VARIABLE = "PREFECT_IMAGEQA_VLLM_ENV"
"""Environment variable with the names of further variables that a server needs."""

_NAMES = frozenset(
    {
        # the system and the user
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "HOSTNAME", "TERM", "NO_COLOR"),
        *("LANG", "LANGUAGE", "TZ", "TMPDIR", "TMP", "TEMP", "GLIBC_TUNABLES", "DO_NOT_TRACK"),
        # libraries, and the compilers that torch and triton run
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "LIBRARY_PATH", "CPATH", "C_INCLUDE_PATH"),
        *("CPLUS_INCLUDE_PATH", "CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "MAX_JOBS"),
        *("VIRTUAL_ENV", "CONDA_PREFIX", "HUGGING_FACE_HUB_TOKEN", "MASTER_ADDR", "MASTER_PORT"),
        # downloads of models
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
        *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    }
)

_PREFIXES = (
    *("VLLM_", "PYTHON", "LC_", "XDG_", "CCACHE_", "MALLOC_", "TCMALLOC"),
    *("TORCH", "PYTORCH_", "TRITON_", "FLASHINFER_", "XFORMERS_", "XGRAMMAR_", "SAFETENSORS_"),
    *("HF_", "TRANSFORMERS_", "TOKENIZERS_", "TIKTOKEN_", "MODELSCOPE_", "RAY_", "PROMETHEUS_"),
    # processors, and the libraries for computing and communicating on them
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "DNNL_", "ONEDNN_", "ONEAPI_"),
    *("CUDA", "CUDNN_", "CUBLAS_", "CUTLASS_", "NVIDIA_", "NCCL_", "NVSHMEM_", "DG_JIT_"),
    *("HIP_", "HSA_", "ROC", "RCCL_", "AMD_", "MIOPEN_", "AITER_", "GPU_", "ZE_", "SYCL_", "CCL_"),
    *("TPU_", "LIBTPU_", "PJRT_", "XLA_", "JAX_", "HABANA_", "PT_HPU_", "NEURON_", "ASCEND_"),
    *("GLOO_", "UCX_", "FI_", "NIXL_", "LMCACHE_"),
)


def inherited_environment() -> dict[str, str]:
    """Of our environment, what a server needs: paths, devices, libraries and its own settings.

    Left out are above all the keys of object stores, of Prefect, and of whatever else runs here.
    """
    names = {*_NAMES, *os.environ.get(EXTRA_VARIABLE, "").split()}
    return {
        name: value
        for name, value in os.environ.items()
        if name in names or name.startswith(_PREFIXES)
    }
