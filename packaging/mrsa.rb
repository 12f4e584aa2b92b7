# A template for a Homebrew formula. Not built yet: the address and the digest of a published wheel are missing.
# `brew create --python` and `brew update-python-resources mrsa` list the dependencies as resources.
class Mrsa < Formula
  include Language::Python::Virtualenv

  desc "Better answers from the language model on your own machine"
  homepage "HOMEPAGE"
  url "URL_OF_THE_WHEEL/markovian_rsa_mlx-0.1.0-py3-none-any.whl"
  sha256 "SHA256_OF_THE_WHEEL"
  license "MIT"

  depends_on "python@3.13"

  def install
    virtualenv_create(libexec, "python3.13")
    system libexec/"bin/python", "-m", "pip", "install", "--no-cache-dir", "#{cached_download}[serve]"
    bin.install_symlink libexec/"bin/mrsa"
    generate_completions_from_executable(bin/"mrsa", "completion", shells: [:bash, :zsh, :fish])
  end

  test do
    ENV["MRSA_HOME"] = testpath
    system bin/"mrsa", "demo"
    system bin/"mrsa", "runs", "verify"
  end
end
