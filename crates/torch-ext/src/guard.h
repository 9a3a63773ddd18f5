// A C interface over C++ that throws: null on success, else a message to be freed.

#pragma once

#include <c10/util/Exception.h>

#include <cstring>

template <typename Work> char* guard(Work work) {
  try {
    work();
    return nullptr;
  } catch (const c10::Error& error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("unknown C++ exception");
  }
}
