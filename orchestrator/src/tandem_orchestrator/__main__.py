# SPDX-License-Identifier: Apache-2.0
from tandem_orchestrator.main import run

if __name__ == "__main__":
    run()
