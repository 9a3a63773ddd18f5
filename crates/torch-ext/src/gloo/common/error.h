// Nothing of it is named by libtorch's header beyond what context.h declares.

#pragma once

#include <gloo/context.h>
